"""A look at a data set before it is ingested: what it is taken for, what it holds, and what ingest would set aside and why."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType

from blip_core.config import IngestConfig
from blip_core.formats import Record, RejectedRow, recognise
from blip_core.images import admit
from blip_core.rejected import REASONS, Rejected
from blip_core.shards import KEY
from blip_core.texts import clean_text

_MOST_UNITS = 50  # that a limited look opens
_ROWS = 5
_WIDE = 72


@dataclass
class Findings:
    """Counts over what was looked at. `rejected`: reason -> how often, with the first row in `examples`."""

    records: int = 0
    images: int = 0  # usable, with a usable text
    texts: list[int] = field(default_factory=list)  # usable ones of each usable image
    words: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    splits: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    keys: set[tuple[str | None, str]] = field(default_factory=set)


def inspect(path: Path, *, cfg: IngestConfig, limit: int = 1000) -> str:
    """Lines for a person. Looks at `limit` samples, from units spread over the whole; 0 looks at all.

    ValueError when no format is recognised (it lists those that were looked for) or nothing of what was looked at is usable."""
    if limit < 0:
        raise ValueError(f"--limit {limit}: expected a number of samples, or 0 for all")
    module = recognise(path)
    units = module.units(path)
    found, whole = Findings(), True
    chosen, each = _spread(units, limit)
    for unit in chosen:
        items = module.read(unit)
        for item in islice(items, each):
            _look(item, found, cfg)
        whole &= next(items, None) is None
    whole &= len(chosen) == len(units)
    report = "\n".join(_report(path, module, len(units), len(chosen), each, whole, found))
    if not found.images:
        raise ValueError(f"no usable image with a text\n{report}")
    return report


def _spread(units: list, limit: int) -> tuple[list, int | None]:
    """Units from all over the data set, and how many samples of each to look at."""
    if not limit or not units:
        return units, None
    count = min(len(units), _MOST_UNITS, limit)
    chosen = [units[i * len(units) // count] for i in range(count)]
    return chosen, -(-limit // count)


def _look(item: Record | RejectedRow, found: Findings, cfg: IngestConfig) -> None:
    found.records += 1
    if isinstance(item, RejectedRow):
        _set_aside(found, item.key, item.where, Rejected(item.reason, item.detail))
        return
    texts = list(_usable_texts(item, found, cfg))
    try:
        if texts:
            if not KEY.fullmatch(item.key):
                raise Rejected("unsafe_key", f"{item.key[:100]!r}")
            if (item.split, item.key) in found.keys:
                raise Rejected("duplicate_key", "an earlier sample has it")
            _, width, height = admit(item.image, cfg.images, short_side=None, quality=cfg.quality)
            _count(item, texts, (width, height), found)
    except Rejected as e:
        _set_aside(found, item.key, item.where, e)


def _usable_texts(record: Record, found: Findings, cfg: IngestConfig) -> Iterator[str]:
    for text in record.texts:
        try:
            yield clean_text(text, cfg.texts)
        except Rejected as e:
            _set_aside(found, record.key, record.where, e)


def _count(record: Record, texts: list[str], size: tuple[int, int], found: Findings) -> None:
    found.images += 1
    found.keys.add((record.split, record.key))
    found.texts.append(len(texts))
    found.words += [len(text.split()) for text in texts]
    found.sizes.append(size)
    found.splits[record.split] += 1
    if len(found.rows) < _ROWS:
        more = f"  (+{len(texts) - 1})" if len(texts) > 1 else ""
        found.rows.append(f"{record.key}  {size[0]}x{size[1]}  {_short(texts[0])}{more}")


def _set_aside(found: Findings, key: str, where: str, rejected: Rejected) -> None:
    found.rejected[rejected.reason] += 1
    told = f"{f'{key} ' if key else ''}at {where}: {rejected.detail or 'no detail'}"
    found.examples.setdefault(rejected.reason, _short(told, 2 * _WIDE))


def _short(text: str, most: int = _WIDE) -> str:
    """On one line, and printable: names and texts come from an unknown hand."""
    text = "".join(c if c.isprintable() else " " for c in text[: 4 * most].encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= most else text[: most - 1] + "…"


def _report(path: Path, module: ModuleType, num_units: int, num_chosen: int, each: int | None, whole: bool, found: Findings) -> list[str]:
    lines = [f"{path}: {module.__name__.rpartition('.')[2]}, {num_units} units ({module.EXPECTS})"]
    if whole:
        lines.append(f"looked at    all {found.records} samples")
    else:
        lines.append(f"looked at    {found.records} samples, up to {each} of each of {num_chosen} units; --limit 0 looks at all")
    lines.append(f"usable       {found.images} images with {sum(found.texts)} texts")
    if found.images:
        lines += _describe(found)
    total = found.rejected.total()
    lines.append(f"set aside    {total or 'nothing'}" + f" ({total / (total + sum(found.texts)):.1%} of the texts)" * bool(total))
    for reason, count in sorted(found.rejected.items(), key=lambda r: (-r[1], r[0])):
        lines += [f"  {count:6d}  {reason}: {REASONS[reason]}", f"          first: {found.examples[reason]}"]
    if not whole and module.__name__.endswith("webdataset"):
        lines.append("Failures that img2dataset's side tables list come after a tar's last image: some may lie beyond the limit.")
    return lines


def _describe(found: Findings) -> list[str]:
    named = {split: n for split, n in found.splits.items() if split}
    splits = ", ".join(f"{split} {n}" for split, n in sorted(named.items()))
    if found.splits[None]:
        dealt = f"{found.splits[None]} without: a clean set is dealt 80/10/10 by image"
        splits = f"{splits}, {dealt}" if splits else f"none named; {dealt.partition(': ')[2]}"
    sizes = Counter(found.sizes)
    short, long = sorted(min(s) for s in found.sizes), sorted(max(s) for s in found.sizes)
    common = max(sizes, key=lambda s: (sizes[s], s))
    words = sorted(found.words)
    return [
        f"splits       {splits}",
        f"per image    {min(found.texts)} to {max(found.texts)} texts, {sum(found.texts) / found.images:.2f} on average; "
        f"words in a text {words[0]} to {words[-1]}, half have {words[len(words) // 2]} or more",
        f"sizes        short side {short[0]} to {short[-1]}, long side {long[0]} to {long[-1]}; "
        f"most often {common[0]}x{common[1]} ({sizes[common]} of {found.images})",
        "first rows",
        *(f"  {row}" for row in found.rows),
    ]
