"""Raw image-text files into immutable shards, generation g0, held-out tables, a vocabulary and a quarantine table.

Two halves. First each unit of the input (a tar, a thousand rows of a list) becomes a folder of its own below `work`, see intake.py.
Then all units together: what only the whole can show is set aside (keys that two units share, pictures that are held out), the shards
get their numbers, and the outputs replace those of an earlier run.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

import blip_core
from blip_core.captions import read_table, table_paths, write_json, write_manifest, write_table
from blip_core.config import IngestConfig
from blip_core.formats import recognise
from blip_core.intake import QUARANTINE_SCHEMA, Task, quarantine_row, take_in
from blip_core.shards import ShardWriter, index_path, read_index

PROTECTED = ("test", "val", "train", "web")  # a picture that occurs twice belongs to the first of them
_GENERATION = ("web", "train")
_FEW = 4  # units that are done sooner than processes start
# whose change makes staged units stale
_SOURCES = ("intake.py", "images.py", "texts.py", "shards.py", "captions.py", "rejected.py", "formats/*.py")


@dataclass(frozen=True)
class _Staged:
    """One shard as its unit left it, and the rows that the whole sets aside."""

    folder: Path
    stem: str
    dropped: dict[str, tuple[str, str]]  # key -> reason, detail


def ingest(
    data: Path,
    out_shards: Path,
    out_generation: Path,
    out_heldout: Path,
    out_vocab: Path,
    out_quarantine: Path,
    out_metrics: Path,
    *,
    cfg: IngestConfig,
    work: Path,
) -> None:
    """Read the crawl and the clean set below `data`. ValueError when a part is missing, empty, or too much of it is set aside.

    The share that counts against cfg.max_rejected is that of texts: of an image that is set aside, all its texts are lost."""
    staging = work / f"ingest-{_identity(data, cfg)}"
    tasks = _tasks(data, staging, cfg)
    _take_in_all(tasks)
    staged, moved = _choose(tasks)
    parts = [read_table(task.folder / "quarantine.parquet") for task in tasks]
    quarantine = pa.concat_tables([*parts, pa.Table.from_pylist(moved, QUARANTINE_SCHEMA)])
    write_table(quarantine, out_quarantine)
    with _replacing(out_shards, out_generation, out_heldout) as (shards, generation, heldout):
        counts = _assemble(staged, shards, generation, heldout, num_images=cfg.shard_images)
        metrics = _metrics(tasks, counts, quarantine, moved_texts=_num_moved_texts(staged))
        _check(metrics, quarantine, cfg, data, out_quarantine)
        for folder, splits in ((shards, PROTECTED), (generation, _GENERATION), (heldout, ("val", "test"))):
            write_manifest(folder, **{f"{kind}_{split}": counts[f"{kind}_{split}"] for split in splits for kind in ("images", "texts")})
        _write_vocab(generation, out_vocab, cfg)
    write_json(metrics, out_metrics)
    shutil.rmtree(staging, ignore_errors=True)


def _identity(data: Path, cfg: IngestConfig) -> str:
    """Hash of whatever a staged unit depends on: the input's files, the parameters, the code."""
    digest = hashlib.sha256(cfg.model_dump_json(exclude={"max_rejected", "vocab", "vocab_size"}).encode())
    for place in (cfg.web, cfg.clean):
        root = data / place
        for path in sorted([root, *root.rglob("*")]):
            if path.is_file():
                stat = path.stat()
                digest.update(f"{path.relative_to(data).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    package = Path(blip_core.__file__).parent
    for path in sorted(path for pattern in _SOURCES for path in package.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _tasks(data: Path, staging: Path, cfg: IngestConfig) -> list[Task]:
    tasks = []
    for part, place, chosen in (("web", cfg.web, cfg.web_format), ("clean", cfg.clean, cfg.clean_format)):
        module = recognise(data / place, chosen)
        name = module.__name__.rpartition(".")[2]
        units = module.units(data / place)
        tasks += [Task(part, place, name, unit, staging / f"{part}-{i:06d}", cfg) for i, unit in enumerate(units)]
    staging.mkdir(parents=True, exist_ok=True)
    return tasks


def _take_in_all(tasks: list[Task]) -> None:
    """Units that an earlier run finished are not done again. The result does not depend on the number of processes."""
    todo = [task for task in tasks if not task.folder.exists()]
    bar = tqdm(total=len(tasks), initial=len(tasks) - len(todo), desc="ingest", unit="unit", disable=None)
    workers = min(len(os.sched_getaffinity(0)), len(todo) // _FEW)
    with bar:
        if workers <= 1:
            for task in todo:
                take_in(task)
                bar.update()
        else:
            _take_in_parallel(todo, workers, bar)


def _take_in_parallel(todo: list[Task], workers: int, bar: tqdm) -> None:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:  # fork and Arrow's threads don't mix
        futures = [pool.submit(take_in, task) for task in todo]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BrokenProcessPool:
            raise ValueError("a process of ingest was killed, most often for lack of memory; run again: finished units are kept") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _choose(tasks: list[Task]) -> tuple[dict[str, list[_Staged]], list[dict]]:
    """The shards of each split in order, with what the whole sets aside; and the quarantine rows of that."""
    staged: dict[str, list[_Staged]] = {}
    moved: list[dict] = []
    heldout: dict[str, str] = {}  # sha256 -> key
    for split in PROTECTED:
        part = "web" if split == "web" else "clean"
        own = [(task, tar.stem) for task in tasks if task.part == part for tar in sorted(task.folder.glob(f"{split}-*.tar"))]
        indexes = [read_index(index_path(task.folder, stem)) for task, stem in own]
        repeated = _repeated_keys(indexes)
        seen: set[str] = set()
        staged[split] = []
        for (task, stem), index in zip(own, indexes, strict=True):
            dropped = _dropped(index, repeated, seen, heldout)
            staged[split].append(_Staged(task.folder, stem, dropped))
            place = f"{task.place}/{getattr(task.unit, 'name', task.unit)}"
            moved += [quarantine_row(part, key, place, *why) for key, why in dropped.items()]
        if split in ("test", "val"):
            for index in indexes:
                heldout |= zip(index["sha256"].to_pylist(), index["key"].to_pylist(), strict=True)
    return staged, moved


def _repeated_keys(indexes: list[pa.Table]) -> pa.Array:
    """Keys that occur in two units; almost always none, so that no set of millions of keys is built."""
    if not indexes:
        return pa.array([], pa.string())
    counts = pc.value_counts(pa.concat_tables(indexes)["key"])
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _dropped(index: pa.Table, repeated: pa.Array, seen: set[str], heldout: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Rows of one shard to set aside. `seen` collects the repeated keys that came by."""
    dropped = {}
    for key in index.filter(pc.is_in(index["key"], repeated))["key"].to_pylist():
        if key in seen:
            dropped[key] = ("duplicate_key", "an earlier file has it")
        seen.add(key)
    leaks = index.filter(pc.is_in(index["sha256"], pa.array(heldout, pa.string())))
    for key, sha256 in zip(leaks["key"].to_pylist(), leaks["sha256"].to_pylist(), strict=True):
        dropped[key] = ("leaks_heldout", f"the same bytes as {heldout[sha256]}")
    return dropped


def _assemble(staged: dict[str, list[_Staged]], shards: Path, generation: Path, heldout: Path, *, num_images: int) -> Counter:
    """Number the shards and put them and their tables into place; returns counts of images, texts and shards."""
    counts: Counter = Counter()
    for split in PROTECTED:
        tables = generation if split in _GENERATION else heldout
        for shard in staged[split]:
            stem = f"{split}-{counts[f'shards_{split}']:05d}"
            counts.update(_place(shard, stem, split, shards, tables, num_images=num_images))
    return counts


def _place(shard: _Staged, stem: str, split: str, shards: Path, tables: Path, *, num_images: int) -> Counter:
    """One staged shard under its final name: linked where it stays as it is, written anew without the dropped rows otherwise."""
    index, table = read_index(index_path(shard.folder, shard.stem)), read_table(shard.folder / f"{shard.stem}.parquet")
    if shard.dropped:
        gone = pa.array(shard.dropped, pa.string())
        index, table = (t.filter(pc.invert(pc.is_in(t["key"], gone))) for t in (index, table))
        if not index.num_rows:
            return Counter()
        _rewrite(shard, index, shards, stem, num_images=num_images)
        write_table(table, tables / f"{stem}.parquet")
    else:
        _link(shard.folder / f"{shard.stem}.tar", shards / f"{stem}.tar")
        _link(index_path(shard.folder, shard.stem), index_path(shards, stem))
        _link(shard.folder / f"{shard.stem}.parquet", tables / f"{stem}.parquet")
    return Counter({f"images_{split}": index.num_rows, f"texts_{split}": table.num_rows, f"shards_{split}": 1})


def _rewrite(shard: _Staged, index: pa.Table, shards: Path, stem: str, *, num_images: int) -> None:
    folder = shards / f"_tmp.{stem}"
    with (shard.folder / f"{shard.stem}.tar").open("rb") as tar, ShardWriter(folder, "kept", num_images=num_images) as writer:
        for row in index.to_pylist():
            jpeg = os.pread(tar.fileno(), row["size"], row["offset"])
            writer.add(row["key"], jpeg, image_id=row["image_id"], width=row["width"], height=row["height"])
    os.rename(folder / "kept-00000.tar", shards / f"{stem}.tar")
    os.rename(index_path(folder, "kept-00000"), index_path(shards, stem))
    folder.rmdir()


def _link(source: Path, out: Path) -> None:
    """A second name for the bytes, so that the staged unit stays whole until all is done; a copy on another file system."""
    try:
        os.link(source, out)
    except OSError:
        shutil.copyfile(source, out)


def _num_moved_texts(staged: dict[str, list[_Staged]]) -> Counter:
    """Texts that left with their images in the second half, by part."""
    moved: Counter = Counter()
    for split, own in staged.items():
        for shard in own:
            if shard.dropped:
                keys = read_table(shard.folder / f"{shard.stem}.parquet", ["key"])["key"]
                moved["web" if split == "web" else "clean"] += pc.sum(pc.is_in(keys, pa.array(shard.dropped, pa.string()))).as_py()
    return moved


def _metrics(tasks: list[Task], counts: Counter, quarantine: pa.Table, *, moved_texts: Counter) -> dict[str, float]:
    names = [f"{kind}_{split}" for split in PROTECTED for kind in ("images", "texts", "shards")]
    metrics: dict[str, float] = {name: counts[name] for name in names}
    for part, splits in (("web", ("web",)), ("clean", ("train", "val", "test"))):
        lost = moved_texts[part] + sum(json.loads((t.folder / "counts.json").read_text())["lost"] for t in tasks if t.part == part)
        texts = lost + sum(counts[f"texts_{split}"] for split in splits)
        metrics[f"rejected_{part}"] = pc.sum(pc.equal(quarantine["part"], part)).as_py() or 0
        metrics[f"rejected_share_{part}"] = round(lost / texts, 6) if texts else 0.0
    reasons = Counter(quarantine["reason"].to_pylist())
    return metrics | {f"rejected_{reason}": count for reason, count in sorted(reasons.items())}


def _check(metrics: dict[str, float], quarantine: pa.Table, cfg: IngestConfig, data: Path, out_quarantine: Path) -> None:
    """ValueError when too much was set aside or nothing is left."""
    for part, place in (("web", cfg.web), ("clean", cfg.clean)):
        share = metrics[f"rejected_share_{part}"]
        if share > cfg.max_rejected:
            reasons = Counter(quarantine.filter(pc.equal(quarantine["part"], part))["reason"].to_pylist())
            listed = "".join(f"\n  {count:8d}  {reason}" for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r[0])))
            raise ValueError(
                f"{data / place}: {share:.1%} of the texts were set aside, more than ingest.max_rejected = {cfg.max_rejected}:{listed}\n"
                f"{out_quarantine} lists each with its origin; mend the input, or raise ingest.max_rejected in params.yaml"
            )
    for split in PROTECTED:
        if not metrics[f"images_{split}"]:
            place = data / (cfg.web if split == "web" else cfg.clean)
            raise ValueError(f"{place}: holds no usable image of the part {split!r}; the clean set needs train, val and test")


def _write_vocab(generation: Path, out: Path, cfg: IngestConfig) -> None:
    """The given vocabulary, or one from the texts of g0: a word that only the held-out texts use must not have an entry."""
    from blip_core.tokenizer import build_vocab, save_vocab

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f"_tmp.{out.name}.{uuid.uuid4().hex}"
    try:
        if cfg.vocab is None:
            texts = (text for path in table_paths(generation) for text in read_table(path, ["text"])["text"].to_pylist())
            save_vocab(build_vocab(texts, cfg.vocab_size), temporary)
        elif cfg.vocab.is_file():
            shutil.copyfile(cfg.vocab, temporary)
        else:
            raise ValueError(f"{cfg.vocab}: no such file; ingest.vocab names a BERT vocab.txt, or null to build one")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _replacing(*outs: Path) -> Iterator[list[Path]]:
    """Empty folders to fill; when the block ends well, each takes the place of its output, whole."""
    temporaries, olds = ([out.parent / f"_tmp.{out.name}{end}" for out in outs] for end in ("", ".old"))
    try:
        for folder in (*temporaries, *olds):
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        for temporary in temporaries:
            temporary.mkdir(parents=True)
        yield temporaries
        for out, temporary, old in zip(outs, temporaries, olds, strict=True):
            if out.exists():
                os.rename(out, old)
            os.rename(temporary, out)
    finally:
        for folder in (*temporaries, *olds):
            shutil.rmtree(folder, ignore_errors=True)
