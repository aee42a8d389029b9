"""A generation in a form that others read: WebDataset tars, Hugging Face's imagefolder or Parquet, lists of other tools, and a card.

One shard is in memory at a time, without its images. The folder appears by rename, whole, its manifest.json written last.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import simplejpeg

from blip_core.export.card import Totals, card
from blip_core.export.fields import SourceFields
from blip_core.export.formats import JPEG_QUALITY, Item
from blip_core.export.tools import WRITERS
from blip_core.files.atomic import new_folder
from blip_core.files.content import sha256_file, write_json
from blip_core.metadata.folder import NAME
from blip_core.pictures.containers import KINDS, kind_of
from blip_core.pictures.images import decode_rgb
from blip_core.tables.captions import CONTROLS, KEPT, SCREENS, read_table, table_paths
from blip_core.tables.manifest import content_hash, read_makers
from blip_core.tables.shards import ShardImages

_SHOWN = (
    "text",
    "source",
    "reason",
    "match",
    "itm",
    "itc",
    "round",
    "candidate",
    "fused_web",
    "fused_synthetic",
    "model",
    "sampler",
    "seed",
    "filter",
    *SCREENS,
)


def export(
    generation: Path,
    out: Path,
    *,
    form: str,
    everything: bool = False,
    pictures: Literal["keep", "jpg"] | None = None,
    licence: str = "unknown",
    shards: Path | None = None,
    metadata: Path | None = None,
    metrics: Path | None = None,
) -> dict[str, Any]:
    """Write `out` and return its manifest. `everything`: also the texts that were not kept, each with its reason.

    `pictures`: "jpg" makes JPEGs of PNG and WebP; None does so for the format whose loaders want one kind. `shards`, `metadata` and
    `metrics` are, where not given, those beside the generation. ValueError when something is missing or `out` is in the way."""
    if form not in WRITERS:
        raise ValueError(f"--format {form}: expected one of {', '.join(WRITERS)}")
    artifacts = generation.resolve().parents[1] if generation.resolve().parent.name == "generations" else generation.resolve().parent
    images = ShardImages(shards or artifacts / "shards", at_once=1)
    fields = SourceFields(metadata or artifacts / NAME)
    check_free(out)
    as_jpeg = pictures == "jpg" if pictures else WRITERS[form].one_kind
    with new_folder(out) as temporary:
        totals = Totals(everything=everything, as_jpeg=as_jpeg, makers=read_makers(generation), fields=fields.types)
        _write(generation, images, fields, temporary, form, totals)
        text = card(totals, generation, name=out.name, form=form, licence=licence, metrics=metrics or artifacts / "metrics")
        (temporary / "README.md").write_text(text)
        manifest = _manifest(temporary, generation, form, totals)
        write_json(manifest, temporary / "manifest.json")
    return manifest


def check_free(out: Path) -> None:
    """An earlier export is replaced; anything else is not ours to remove."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        earlier = json.loads((out / "manifest.json").read_bytes())
    except (OSError, ValueError):
        earlier = {}
    if "export" not in earlier:
        raise ValueError(f"{out}: exists and is no earlier export; name another folder with --out, or remove it")


def _write(generation: Path, images: ShardImages, fields: SourceFields, folder: Path, form: str, totals: Totals) -> None:
    paths = [p for p in table_paths(generation) if p.name != CONTROLS]
    if not paths:
        raise ValueError(f"{generation}: holds no table")
    with WRITERS[form](folder, fields.types) as writer:
        for path in paths:
            split = path.stem.rpartition("-")[0]
            items = _items(path, images, fields, totals, split)
            if (first := next(items, None)) is not None:  # an empty tar would read as a damaged one
                writer.write(split, path.stem, chain([first], items))
    if not totals.images:
        raise ValueError(f"{generation}: no image has a {'' if totals.everything else 'kept '}text, so there is nothing to export")


def _items(path: Path, images: ShardImages, fields: SourceFields, totals: Totals, split: str) -> Iterator[Item]:
    """Each image that has a text, with its texts in the table's order."""
    table = read_table(path)
    totals.reasons.update(table["reason"].to_pylist())
    if not totals.everything:
        table = table.filter(pc.equal(table["reason"], KEPT))
    texts: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        texts.setdefault(row["key"], []).append(row)
    told = fields.of(path.stem, list(texts))
    for key, rows in texts.items():
        data = images.bytes(path.stem, key)
        totals.count(split, rows, kind_of(data), told[key])
        width, height = images.size(path.stem, key)
        candidates = [{name: row[name] for name in _SHOWN} for row in rows]
        yield Item(key, rows[0]["image_id"], _jpeg(data) if totals.as_jpeg else data, width, height, candidates, told[key])


def _jpeg(data: bytes) -> bytes:
    """A JPEG as it is, all else encoded anew; the accurate DCT gives the same bytes with any instruction set."""
    if kind_of(data) == "jpg":
        return data
    return simplejpeg.encode_jpeg(decode_rgb(data), quality=JPEG_QUALITY, colorsubsampling="444", fastdct=False)


def _manifest(folder: Path, generation: Path, form: str, totals: Totals) -> dict[str, Any]:
    """Every file but the single images, of which the count stands; their bytes are in the shards' indexes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix[1:] not in KINDS)
    return {
        "export": form,
        "everything": totals.everything,
        "generation": content_hash(generation),
        "images": totals.images,
        "encoded_anew": totals.encoded_anew,
        "fields": {name: totals.having[name] for name in totals.fields},
        "texts": dict(Counter({f"{split}/{source}": n for (split, source), n in sorted(totals.texts.items())})),
        "files": {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files},
    }
