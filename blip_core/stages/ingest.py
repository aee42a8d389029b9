"""Raw image-text files into immutable shards, what is known of their pictures, generation g0, held-out tables, a vocabulary and a
quarantine table.

Two halves. First each unit of the input (a tar, a thousand rows of a list) becomes a folder of its own below `work`, see units.py
and processes.py. Then all units together, see gather.py: what only the whole can show is set aside (keys that two units share, pictures
that are held out and their copies), the shards get their numbers, and the outputs replace those of an earlier run.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import blip_core
from blip_core.config.intake import IngestConfig
from blip_core.files.atomic import clear_killed
from blip_core.files.content import write_json
from blip_core.intake import by_meaning, near_copies
from blip_core.intake.account import Account
from blip_core.intake.beside import FieldTables
from blip_core.intake.by_meaning import Embeddings
from blip_core.intake.classified import classify
from blip_core.intake.gather import GENERATION, HELDOUT, PROTECTED, choose, place, quarantined
from blip_core.intake.processes import take_in_all
from blip_core.intake.sources import PARTS, Source, identity, open_source, shown
from blip_core.intake.staged import Staged
from blip_core.intake.stored import remove_unused
from blip_core.intake.units import QUARANTINE_SCHEMA, Task, quarantine_row
from blip_core.intake.vocabulary import write_vocabulary
from blip_core.screens.fields import REASON
from blip_core.tables.captions import read_table, write_table
from blip_core.tables.manifest import write_manifest

log = logging.getLogger(__name__)

_BY_CHOICE = (near_copies.REASON, by_meaning.REASON, REASON)  # how reasons begin that are no faults
# packages whose change makes staged units stale
_SOURCES = ("intake", "metadata", "pictures", "screens", "texts", "tables", "files")


def ingest(
    data: Path,
    out_shards: Path,
    out_generation: Path,
    out_heldout: Path,
    out_metadata: Path,
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
    sources = _sources(data, staging, cfg)
    tasks = _tasks(sources, staging, cfg)
    embeddings = Embeddings.open(cfg.near_copies.meaning, work / "embedded")  # what is wrong with it is said before hours of reading
    take_in_all(tasks)
    web = [(task.folder, tar.stem) for task in tasks if task.part == "web" for tar in sorted(task.folder.glob("*.tar"))]
    classify(web, cfg.pictures, work / "classified")
    accounts = {part: _account(sources[part], [t for t in tasks if t.part == part]) for part in PARTS}
    staged = choose(tasks, cfg.near_copies, cfg.pictures, embeddings)
    remove_unused(work / "embedded", embeddings.used if embeddings else ())
    parts = [read_table(task.folder / "quarantine.parquet") for task in tasks]
    parts += [_not_read(part, sources[part].place, accounts[part]) for part in PARTS]
    quarantine = pa.concat_tables([*parts, pa.Table.from_pylist(quarantined(staged), QUARANTINE_SCHEMA)])
    clear_killed(out_vocab, out_quarantine, out_metrics)
    write_table(quarantine, out_quarantine)
    with _replacing(out_shards, out_generation, out_heldout, out_metadata) as (shards, generation, heldout, metadata):
        fields = FieldTables(
            metadata, [(s.task.folder, s.stem) for own in staged.values() for s in own], cfg.metadata, screened=bool(cfg.pictures.screens)
        )
        counts = place(staged, shards, generation, heldout, fields, cfg=cfg)
        told = fields.finish(tasks)
        _warn_of_unknown(counts, cfg)
        unread = {part: sum(row.lost for row in accounts[part].rows) for part in PARTS}
        metrics = _metrics(tasks, counts, quarantine, lost=_num_moved_texts(staged) + Counter(unread))
        metrics |= {f"aside_files_{part}": accounts[part].aside.total() for part in PARTS}
        if cfg.near_copies.heldout_distance is not None:
            metrics.setdefault(f"rejected_{near_copies.HELDOUT_REASON}", 0)
        if embeddings and embeddings.cfg.heldout_cosine is not None:
            metrics.setdefault(f"rejected_{by_meaning.HELDOUT_REASON}", 0)
        _check(metrics, quarantine, cfg, data, out_quarantine)
        for folder, splits in ((shards, PROTECTED), (generation, GENERATION), (heldout, HELDOUT)):
            facts = {f"{kind}_{split}": counts[f"{kind}_{split}"] for split in splits for kind in ("images", "texts")}
            rules = {} if folder == shards else {"limits": cfg.texts.model_dump(), "screens": cfg.screens.model_dump()}
            by = {"embedded_by": embeddings.embedder.identity} if embeddings and folder == shards else {}
            write_manifest(folder, **facts, **rules, **by)
        write_manifest(metadata, **told)
        metrics |= write_vocabulary(generation, out_vocab, cfg)
    write_json(metrics, out_metrics)
    shutil.rmtree(staging, ignore_errors=True)


def _identity(data: Path, cfg: IngestConfig) -> str:
    """Hash of whatever a staged unit depends on: the input's files, the parameters, the code."""
    later = ("remote", "max_rejected", "vocab", "vocab_kind", "vocab_size", "max_unknown")  # what no unit depends on
    digest = hashlib.sha256(cfg.model_dump_json(exclude={**dict.fromkeys(later, True), "near_copies": {"meaning"}}).encode())
    for part in PARTS:
        for line in identity(data, part, getattr(cfg, part)):
            digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    package = Path(blip_core.__file__).parent
    for path in sorted(path for room in _SOURCES for path in (package / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(data: Path, staging: Path, cfg: IngestConfig) -> dict[str, Source]:
    staging.mkdir(parents=True, exist_ok=True)
    sources = {part: open_source(data, part, cfg, scratch=staging) for part in PARTS}
    for part, source in sources.items():
        for note in source.notes:
            log.warning("ingest.%s: %s", part, note)
    return sources


def _tasks(sources: dict[str, Source], staging: Path, cfg: IngestConfig) -> list[Task]:
    return [
        Task(part, source.place, source.format, unit, staging / f"{part}-{i:06d}", cfg)
        for part, source in sources.items()
        for i, unit in enumerate(source.units)
    ]


def _account(source: Source, tasks: list[Task]) -> Account:
    """What became of the files that none of the units read."""
    used = {name for task in tasks for name in read_table(task.folder / "files.parquet")["file"].to_pylist()}
    texts = sum(pq.read_metadata(path).num_rows for task in tasks for path in _staged_tables(task))
    return source.account(used, texts=texts)


def _staged_tables(task: Task) -> list[Path]:
    return [path for path in task.folder.glob("*.parquet") if path.with_suffix(".tar").exists()]


def _not_read(part: str, place: str, account: Account) -> pa.Table:
    rows = [quarantine_row(part, row.key, f"{place}/{row.where}", row.reason, row.detail) for row in account.rows]
    return pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)


def _warn_of_unknown(counts: Counter[str], cfg: IngestConfig) -> None:
    """Pictures whose field a screen could not read."""
    for screen in cfg.pictures.screens:
        missing, mistyped = (counts[f"{what}_{REASON}{screen.name}"] for what in ("missing", "mistyped"))
        if missing or mistyped:
            told = f"{missing:,} pictures of the crawl have no {screen.field}, {mistyped:,} one of a type that it can't compare"
            log.warning("ingest.pictures.screens, %s: %s; missing: %s", screen.name, told, screen.missing)


def _num_moved_texts(staged: dict[str, list[Staged]]) -> Counter[str]:
    """Texts that left with their images in the second half, by part; without those that were dropped by choice."""
    moved: Counter[str] = Counter()
    for split, own in staged.items():
        for shard in own:
            gone = pa.array([key for key, (reason, _) in shard.dropped.items() if not reason.startswith(_BY_CHOICE)], pa.string())
            if len(gone):
                keys = read_table(shard.task.folder / f"{shard.stem}.parquet", ["key"])["key"]
                moved["web" if split == "web" else "clean"] += pc.sum(pc.is_in(keys, gone)).as_py()
    return moved


def _metrics(tasks: list[Task], counts: Counter[str], quarantine: pa.Table, *, lost: Counter[str]) -> dict[str, float]:
    """`lost`: texts by part that no unit counts: of pictures that left in the second half, of files that nobody read."""
    names = [f"{kind}_{split}" for split in PROTECTED for kind in ("images", "texts", "shards")]
    metrics: dict[str, float] = {name: counts[name] for name in [*names, "images_without_text"]}
    for part, splits in (("web", ("web",)), ("clean", ("train", "val", "test"))):
        away = lost[part] + sum(json.loads((t.folder / "counts.json").read_text())["lost"] for t in tasks if t.part == part)
        texts = away + sum(counts[f"texts_{split}"] for split in splits)
        metrics[f"rejected_{part}"] = pc.sum(pc.equal(quarantine["part"], part)).as_py() or 0
        metrics[f"rejected_share_{part}"] = round(away / texts, 6) if texts else 0.0
    reasons = Counter(quarantine["reason"].to_pylist())
    metrics |= {name: count for name, count in sorted(counts.items()) if name.startswith(("marked_", "dropped_", "missing_", "mistyped_"))}
    return metrics | {f"rejected_{reason}": count for reason, count in sorted(reasons.items())}


def _check(metrics: dict[str, float], quarantine: pa.Table, cfg: IngestConfig, data: Path, out_quarantine: Path) -> None:
    """ValueError when too much was set aside or nothing is left."""
    for part in PARTS:
        share = metrics[f"rejected_share_{part}"]
        if share > cfg.max_rejected:
            reasons = Counter(quarantine.filter(pc.equal(quarantine["part"], part))["reason"].to_pylist())
            listed = "".join(f"\n  {count:8d}  {reason}" for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r[0])))
            raise ValueError(
                f"{shown(data, cfg, part)}: {share:.1%} of the texts were set aside, "
                f"more than ingest.max_rejected = {cfg.max_rejected}:{listed}\n"
                f"{out_quarantine} lists each with its origin; mend the input, or raise ingest.max_rejected in params.yaml"
            )
    for split in PROTECTED:
        if not metrics[f"images_{split}"]:
            place = shown(data, cfg, "web" if split == "web" else "clean")
            raise ValueError(
                f"{place}: holds no usable image of the part {split!r}; the clean set needs train, val and test "
                "(ingest.split.by: dealt deals all of it)"
            )


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
