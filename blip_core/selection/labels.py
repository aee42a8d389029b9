"""What people said of texts: JSON lines, one judgement each, as the sheet exports them. docs/review.md describes the format."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from blip_core.config.selection import Crawled

VERSION = 1
Name = Annotated[str, Field(min_length=1)]
Digest = Annotated[str, Field(pattern=r"[0-9a-f]{16}")]


class Pair(NamedTuple):
    """A text at a picture. The picture is known by its content, so that a label is never taken for one of another picture."""

    shard: str
    key: str
    image_id: str
    source: str
    round: str
    candidate: int
    text: str

    @classmethod
    def of(cls, shard: str, row: dict[str, Any]) -> "Pair":
        """Of a row of the shard's caption table."""
        return cls(shard, **{name: row[name] for name in cls._fields[1:]})


class Label(BaseModel):
    """One line of a file of labels."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1]
    sheet: Digest = Field(description="the sheet's identity: which texts it asked about")
    generation: Digest = Field(description="the generation that they were drawn from, as it then was")
    candidates: Digest | None = Field(None, description="the scored candidates of which that generation was chosen; older sheets don't say")
    asked: Literal["all", "kept"] = Field(
        "all", description="kept: the sheet asked about kept texts alone, which can't teach a calibration"
    )
    shard: Name
    key: Name
    image_id: Name
    source: Crawled
    round: str
    candidate: int = Field(ge=0)
    text: str
    filter: str = Field(description="content hash of the filter whose score ordered the sample")
    weight: float = Field(ge=1, allow_inf_nan=False, description="how many texts of the generation this one was drawn to stand for")
    verdict: Literal["right", "wrong", "unsure"]
    reviewer: Annotated[str, Field(min_length=1, max_length=60)]
    time: AwareDatetime
    blind: bool = Field(description="whether it was judged before its source and scores were shown")

    @property
    def pair(self) -> Pair:
        return Pair(*(getattr(self, name) for name in Pair._fields))


@dataclass(frozen=True)
class Judged:
    """What all reviewers together say of a pair that at least one of them was sure about."""

    pair: Pair
    right: float  # share of those who were sure
    weight: float  # comparable over all sheets


def read_labels(paths: Iterable[Path]) -> list[Label]:
    """All lines of these files and of the *.jsonl in these folders, which hold nothing else but notes (*.md, *.txt).

    Of what a reviewer said of a pair on a sheet, the newest counts.

    ValueError names file and line of what is no label."""
    newest: dict[tuple[str, str, Pair], Label] = {}
    for file in _files(paths):
        for label in _read_file(file):
            place = (label.sheet, label.reviewer, label.pair)
            if place not in newest or label.time >= newest[place].time:
                newest[place] = label
    return list(newest.values())


def judged(labels: Iterable[Label]) -> list[Judged]:
    """The pairs that someone was sure about, in a fixed order.

    Each sheet is a sample by itself, with weights that add up to the whole crawl; together they count by how many pairs of
    each are judged. A pair that stands on two sheets had two chances to be drawn, and its weights add up.
    """
    sure: dict[str, dict[Pair, list[Label]]] = defaultdict(lambda: defaultdict(list))
    for label in labels:
        if label.verdict != "unsure":
            sure[label.sheet][label.pair].append(label)
    weight: dict[Pair, float] = defaultdict(float)
    said: dict[Pair, list[bool]] = defaultdict(list)
    for pairs in sure.values():
        scale = len(pairs) / sum(found[0].weight for found in pairs.values())
        for pair, found in pairs.items():
            weight[pair] += scale * found[0].weight
            said[pair] += [label.verdict == "right" for label in found]
    return [Judged(pair, sum(said[pair]) / len(said[pair]), weight[pair]) for pair in sorted(said)]


def _files(paths: Iterable[Path]) -> list[Path]:
    files = []
    for path in paths:
        if path.is_dir():
            if strange := [p for p in sorted(path.iterdir()) if not (p.suffix == ".jsonl" or _is_note(p.name))]:
                raise ValueError(f"{strange[0]}: no file of labels; expected .jsonl files as a review sheet exports them; take it away")
            files += sorted(path.glob("*.jsonl"))
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path}: no such file or folder; labels are the .jsonl files that a review sheet exports")
    return files


def _is_note(name: str) -> bool:
    """A file that nobody takes for labels: what a browser saves as labels.jsonl.txt is none."""
    return name.startswith(".") or (name.endswith((".md", ".txt")) and ".jsonl" not in name)


def _read_file(path: Path) -> list[Label]:
    labels = []
    try:
        with path.open(encoding="utf-8-sig") as lines:  # an editor may have put a mark before the first line
            for number, line in enumerate(lines, 1):
                if line.strip():
                    labels.append(_parse(line, f"{path}:{number}"))
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 ({e.reason} at byte {e.start}); take the file as the review sheet exported it") from None
    return labels


def _parse(line: str, where: str) -> Label:
    try:
        return Label.model_validate_json(line)
    except ValidationError as e:
        fault = e.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        got = "" if fault["type"] in ("missing", "json_invalid") else f", got {_short(fault['input'])}"
        hint = f"; this program reads version {VERSION}" if place == "version" else ""
        raise ValueError(f"{where}: {f'{place}: ' if place else ''}{fault['msg']}{got}{hint}; export it from the sheet again") from None


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
