"""A look at a data set before it is ingested: what it is taken for, what it holds, what ingest would set aside and why, what the screens
would hit."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from blip_core.config.intake import FieldsConfig, IngestConfig
from blip_core.files.content import hash64
from blip_core.files.rejected import REASONS, Rejected
from blip_core.intake.account import Account, hashed
from blip_core.intake.formats import FORMATS, SPLITS, Record, RejectedRow, format_module
from blip_core.intake.formats.columns import SEARCH
from blip_core.intake.sources import PARTS, Source, expand, is_remote, local_files, look
from blip_core.intake.units import chain_key, split_of
from blip_core.pictures.images import admit
from blip_core.preview.enough import Least
from blip_core.preview.field_findings import FieldFindings
from blip_core.preview.picture_findings import PictureFindings
from blip_core.preview.sampling import estimated, spread
from blip_core.preview.text_findings import WIDE, TextFindings, screen_lines, short
from blip_core.tables.shards import KEY
from blip_core.texts.clean import lost_texts, usable

_MOST_UNITS = 50  # that a limited look opens
_MOST_FETCHED = 3  # of tars that must be fetched
_ROWS = 5


@dataclass
class Findings:
    """Counts over what was looked at. `rejected`: reason -> how often, with the first row in `examples`."""

    told: TextFindings
    fields: FieldFindings
    pictures: PictureFindings
    part: str | None  # of the data; None: the chain does not read it yet
    records: int = 0
    texts: Counter[int] = field(default_factory=Counter)  # usable images by the number of their usable texts
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    splits: Counter[str | None] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    keys: set[tuple[str | None, str]] = field(default_factory=set)

    samples: int = 0  # of the whole, by the sizes of the units where not all were looked at
    picture_bytes: int = 0
    lost: int = 0  # texts that were set aside
    bare: int = 0  # usable images without a usable text
    used: set[int] = field(default_factory=set)  # hashes of the files that were read

    @property
    def images(self) -> int:
        """Usable, with a usable text."""
        return self.texts.total()


def inspect(
    path: str | Path,
    *,
    cfg: IngestConfig,
    limit: int = 1000,
    fields: FieldsConfig = SEARCH,
    data: Path = Path("data"),
    least: Least | None = None,
) -> str:
    """Lines for a person. Looks at `limit` samples that stand for the whole; 0 looks at all. `path` may be in S3 (sources.py).
    Where it is a part of `data`, keys are those of the chain. `least`: what later stages will ask for; None says nothing of it.

    ValueError when no format is recognised (it lists those that were looked for) or nothing of what was looked at is usable."""
    if limit < 0:
        raise ValueError(f"--limit {limit}: expected a number of samples, or 0 for all")
    with TemporaryDirectory() as scratch:
        source, part = look(str(path), cfg.remote, scratch=Path(scratch), fields=fields), part_of(str(path), cfg, data)
        return _inspect(str(path), source, cfg, limit, part, least)


def part_of(path: str, cfg: IngestConfig, data: Path) -> str | None:
    """The part that the chain reads there, web or clean; None where it is neither."""
    for part in PARTS:
        place = getattr(cfg, part)
        if is_remote(place):
            found = path in expand(place)
        else:
            found = any(Path(path).resolve().is_relative_to(known.resolve()) for known in local_files(data, place))
        if found:
            return part
    return None


def _inspect(path: str, source: Source, cfg: IngestConfig, limit: int, part: str | None, least: Least | None) -> str:
    module, units = format_module(source.format), source.units
    found, whole = (
        Findings(TextFindings(cfg.screens, cfg.screens.max_repeat), FieldFindings(cfg.metadata), PictureFindings(cfg.pictures), part),
        True,
    )
    found.used = hashed(name for unit in units for name in unit.files)
    chosen = spread(units, limit, most=_MOST_FETCHED if source.format.startswith("remote") else _MOST_UNITS)
    for unit, each in chosen:
        items = module.read(unit)
        for item in islice(items, each):
            _look(item, found, cfg)
        whole &= next(items, None) is None
    whole &= len(chosen) == len(units)
    tars = source.format.endswith("webdataset")
    if whole:
        found.samples = found.records
    else:
        found.samples = estimated(units, looked=found.records, picture_bytes=found.picture_bytes, tars=tars)
    found.told.flush()
    found.pictures.flush()
    left = source.account(found.used, texts=found.told.total)
    if not whole:  # which pictures the rest of a list names is not known
        left.rows = [row for row in left.rows if row.reason != "not_listed"]
    for row in left.rows:
        _set_aside(found, row.key, row.where, Rejected(row.reason, row.detail), lost=row.lost)
    lines = _report(path, source, len(chosen), whole, found, left, cfg)
    if whole and least:  # a part of it can't be too small
        lines += [f"too few      {line}" for line in _too_few(found, cfg, least)]
    report = "\n".join(lines)
    if not found.images:
        raise ValueError(f"no usable image with a text\n{report}")
    return report


def _look(item: Record | RejectedRow, found: Findings, cfg: IngestConfig) -> None:
    found.records += 1
    if item.file:
        found.used.add(hash64(item.file))
    if isinstance(item, RejectedRow):
        _set_aside(found, item.key, item.where, Rejected(item.reason, item.detail), lost=item.lost)
        return
    found.picture_bytes += len(item.image)
    texts = _usable_texts(item, found, cfg)
    try:
        if texts or cfg.without_text == "caption":
            if not KEY.fullmatch(item.key):
                raise Rejected("unsafe_key", f"{item.key[:100]!r}")
            if (item.split, item.key) in found.keys:
                raise Rejected("duplicate_key", "an earlier sample has it")
            image = admit(item.image, cfg.images, short_side=None, quality=cfg.quality, format=cfg.format)
            _count(item, texts, (image.width, image.height), found, cfg)
            found.fields.add(item.fields)
            found.pictures.add(item.fields, image.pixels)
        elif not item.texts:
            raise Rejected("missing_text", "no text with it")
    except Rejected as e:
        _set_aside(found, item.key, item.where, e)


def _usable_texts(record: Record, found: Findings, cfg: IngestConfig) -> list[str]:
    """As they were found, which is what the screens judge; each once."""

    def set_aside(e: Rejected) -> None:
        _set_aside(found, record.key, record.where, e, lost=lost_texts(e))

    return [raw for raw, _ in usable(record.texts, cfg.texts, set_aside)]


def _count(record: Record, texts: list[str], size: tuple[int, int], found: Findings, cfg: IngestConfig) -> None:
    found.keys.add((record.split, record.key))
    if not texts:
        found.bare += 1
        return
    found.texts[len(texts)] += 1
    found.sizes[size] += 1
    found.splits[record.split] += 1
    found.told.add(texts)
    if len(found.rows) < _ROWS:
        more = f"  (+{len(texts) - 1})" if len(texts) > 1 else ""
        key = chain_key(record.key, found.part, split_of(record, found.part, cfg)) if found.part else record.key
        found.rows.append(f"{key}  {size[0]}x{size[1]}  {short(texts[0])}{more}")


def _set_aside(found: Findings, key: str, where: str, rejected: Rejected, *, lost: int = 1) -> None:
    """`lost`: how many texts go with it."""
    found.rejected[rejected.reason] += 1
    found.lost += lost
    told = f"{f'{key} ' if key else ''}at {where}: {rejected.detail or 'no detail'}"
    found.examples.setdefault(rejected.reason, short(told, 2 * WIDE))


# lines


def _report(
    path: str,
    source: Source,
    num_chosen: int,
    whole: bool,
    found: Findings,
    left: Account,
    cfg: IngestConfig,
) -> list[str]:
    name, module = source.format, format_module(source.format)
    lines = [f"{path}: {name}, {len(source.units)} units ({module.EXPECTS})"]
    if others := _others(path, name):
        lines.append(f"there too    {', '.join(others)}: not read unless ingest.web_format or clean_format names it")
    if whole:
        lines.append(f"looked at    all {found.records} samples")
    else:
        told = f"{found.records} of some {found.samples} samples, in {num_chosen} units, of each as its size says"
        lines.append(f"looked at    {told}; --limit 0 looks at all")
    bare = f", and {found.bare} without a usable one, which a captioner gets in a crawl" if found.bare else ""
    lines.append(f"usable       {found.images} images with {found.told.total} texts{bare}")
    lines += [f"note         {note}" for note in source.notes]
    if found.images:
        part = None if whole else found.records / found.samples
        lines += [
            *_describe(found, cfg, whole=whole),
            *found.fields.lines(),
            *found.pictures.lines(),
            *screen_lines(found.told, cfg.screens, images=found.images, part=part),
        ]
    share = f"{found.lost} of {found.lost + found.told.total} texts, {found.lost / max(1, found.lost + found.told.total):.1%}"
    lines.append(f"set aside    {share}" if found.rejected else "set aside    nothing")
    for reason, count in sorted(found.rejected.items(), key=lambda r: (-r[1], r[0])):
        lines += [f"  {count:6d}  {reason}: {REASONS[reason]}", f"          first: {found.examples[reason]}"]
    if left.aside:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(left.aside.items()))
        lines.append(f"not read     files without samples: {told}")
    if not whole and name.endswith("webdataset"):
        lines.append("Failures that img2dataset's side tables list come after a tar's last image: some may lie beyond the limit.")
    return lines


def _others(path: str, name: str) -> list[str]:
    """Other formats that recognise files there. A table reads an imagefolder's metadata too, and nothing else."""
    names = [n for n in FORMATS if n != name and (n, name) != ("table", "imagefolder")] if Path(path).is_dir() else []
    return [n for n in names if format_module(n).recognises(Path(path))]


def _too_few(found: Findings, cfg: IngestConfig, least: Least) -> list[str]:
    """By the part that it is; of what is neither by both, unless it names splits as a clean set does."""
    crawl, clean = (found.part == part for part in PARTS)
    lines = []
    if not clean and not found.splits.keys() & {"val", "test"}:
        lines += [("" if crawl else "as a crawl: ") + line for line in least.lacking({"web": found.images})]
    if not crawl:
        parts = _parts(found, cfg)
        controls = parts["val"] / 2 * min(least.per_image, found.told.total / max(1, found.images))
        lines += [("" if clean else "as a clean set: ") + line for line in least.lacking(parts, controls=controls)]
    return lines


def _parts(found: Findings, cfg: IngestConfig) -> dict[str, float]:
    """Images of train, val and test: those that are named, and of those that are dealt the share."""
    shares = {split: getattr(cfg.split, split) for split in SPLITS}
    dealt = found.images if cfg.split.by == "dealt" else found.splits[None]
    named = Counter() if cfg.split.by == "dealt" else found.splits
    return {split: named[split] + dealt * share / sum(shares.values()) for split, share in shares.items()}


def _describe(found: Findings, cfg: IngestConfig, *, whole: bool) -> list[str]:
    parts = [cfg.split.train, cfg.split.val, cfg.split.test]
    shares = "/".join(f"{100 * share / sum(parts):g}" for share in parts)
    splits = ", ".join(f"{split} {n}" for split, n in sorted((s, n) for s, n in found.splits.items() if s))
    if cfg.split.by == "dealt":
        splits = f"{splits or 'none named'}; by ingest.split a clean set is dealt {shares} by image"
    elif found.splits[None]:
        dealt = f"a clean set is dealt {shares} by image"
        splits = f"{splits}, {found.splits[None]} without: {dealt}" if splits else f"none named; {dealt}"
    elif whole and (lacking := [split for split in SPLITS if split not in found.splits]):
        splits += f"; a clean set needs {' and '.join(lacking)} too: ingest.split.by: dealt deals all of it {shares} by image"
    sample = "" if whole else " (of what was looked at)"
    short, long = ([f(s) for s in found.sizes] for f in (min, max))
    common = max(found.sizes, key=lambda s: (found.sizes[s], s))
    words = found.told.words
    return [
        f"splits       {splits}{sample}",
        f"per image    {min(found.texts)} to {max(found.texts)} texts, {found.told.total / found.images:.2f} on average; "
        f"words in a text {min(words)} to {max(words)}, half have {_median(words)} or more",
        f"sizes        short side {min(short)} to {max(short)}, long side {min(long)} to {max(long)}; "
        f"most often {common[0]}x{common[1]} ({found.sizes[common]} of {found.images})",
        f"first rows   {_whose_keys(found.part)}",
        *(f"  {row}" for row in found.rows),
    ]


def _whose_keys(part: str | None) -> str:
    if part:
        return "by the keys of the chain, which `blip history` takes"
    return "by their own keys; the chain puts web- before those of a crawl, train-, val- or test- before those of a clean set"


def _median(counts: Counter[int]) -> int:
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen > counts.total() // 2:
            return value
    raise AssertionError("nothing was counted")
