"""What ingest took in and set aside, as a section of the report."""

from typing import Any

from blip_core.files.rejected import REASONS
from blip_core.metadata.folder import NAME, accounted
from blip_core.preview.field_account import account_lines
from blip_core.report.findings import SPLITS, Findings
from blip_core.report.page import Section, Table
from blip_core.report.wording import amount, percent
from blip_core.screens.fields import REASON
from blip_core.tables.captions import SCREENS


def intake_section(found: Findings) -> Section:
    counts = found.ingest
    rows = [[split, *(amount(counts.get(f"{kind}_{split}")) for kind in ("images", "texts", "shards"))] for split in SPLITS]
    parts: list[str | Table] = [Table(["part", "images", "texts", "shards"], rows)]
    lost = [f"{part} {percent(counts.get(f'rejected_share_{part}'))}" for part in ("web", "clean")]
    parts.append(f"Share of the texts that were set aside: {', '.join(lost)}. Each stands in {found.artifacts / 'quarantine.parquet'}.")
    if bare := counts.get("images_without_text"):
        parts.append(f"{bare:,} pictures of the crawl came without a usable text: they are for the captioner, and count in the coverage.")
    parts += _joined(counts)
    if found.quarantine:
        ordered = sorted(found.quarantine.items(), key=lambda item: (item[0][0] != "web", -item[1], item[0]))
        quarantine = [[part, reason, _meaning(reason), f"{n:,}"] for (part, reason), n in ordered]
        parts.append(Table(["part", "reason", "which means", "rows"], quarantine, left=3))
    on = [name for name in SCREENS if f"marked_{name}" in counts]
    screens = [[name, *(amount(counts[f"{what}_{name}"]) for what in ("marked", "dropped"))] for name in on]
    if screens:
        parts.append(Table(["screen of web texts", "hit", "dropped"], screens))
    parts += _picture_screens(counts)
    parts += _fields(accounted(found.artifacts / NAME))
    return Section("What came in", parts, in_text=0)


def _meaning(reason: str) -> str:
    name = reason.removeprefix(REASON)
    return f"the screen {name} of pictures, by choice, so that it does not count as a fault" if name != reason else REASONS.get(reason, "")


def _joined(counts: dict[str, Any]) -> list[str]:
    """Near copies that stay."""
    ways = (("near_copy", "by their hashes"), ("near_copy_by_meaning", "by their embeddings"))
    told = [f"{counts[f'marked_{name}']:,} {how}" for name, how in ways if f"marked_{name}" in counts]
    return [f"Pictures of the crawl that count as one with an earlier near copy: {', '.join(told)}."] if told else []


def _picture_screens(counts: dict[str, Any]) -> list[str | Table]:
    names = [name.removeprefix(f"marked_{REASON}") for name in counts if name.startswith(f"marked_{REASON}")]
    kinds = ("marked", "dropped", "missing", "mistyped")
    rows = [[name, *(amount(counts[f"{kind}_{REASON}{name}"]) for kind in kinds)] for name in names]
    return [Table(["screen of web pictures", "hit", "dropped", "field missing", "of another type"], rows)] if rows else []


def _fields(told: dict[str, Any]) -> list[str | Table]:
    """What the sources say of the pictures beside their texts: how many pictures of each part have a field."""
    splits = list(told.get("pictures", {}))
    rows = [[name, own["type"], *(amount(own["pictures"].get(s, 0)) for s in splits)] for name, own in told.get("fields", {}).items()]
    table = Table(["field", "type", *splits], rows, left=2, folded=f"{len(rows)} fields of the sources, and how many pictures have them")
    return [*([table] if rows else []), *(f"{line}." for line in account_lines(told))]
