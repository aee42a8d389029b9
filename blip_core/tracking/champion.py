"""Which version is champion, who moved it there, when and why.

MLflow keeps one version for an alias, so there is never more than one champion. Each move is written down with the version that it
makes champion (tag `champion.<time>`), and what was taken back stays marked (tag `withdrawn`). Nothing here moves the champion to a
version whose gate is not recorded as passed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blip_core.tracking.registry import Registry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CANDIDATE, CHALLENGER = "champion", "candidate", "challenger"
TEST, APPROVAL, ROLLBACK, REJECTION = "paired test", "approval", "roll-back", "rejection"
WITHDRAWN = "withdrawn"
SHOWN = ("tr_r1", "ir_r1", "cider")
LONGEST = 5000  # characters of a description: MLflow's column, to which PostgreSQL holds
# tags by which a version says where it comes from, and what a reader calls them
ORIGIN = {
    "model": "model",
    "sources": "sources of texts",
    "generation": "generation",
    "generation_dvc_md5": "generation's md5",
    "data_dvc_md5": "raw data's md5",
    "git_rev": "code",
    "git_dirty": "code changed since",
    "captioner": "captioner",
    "filter": "filter",
    "gate": "gate",
}


@dataclass(frozen=True)
class Move:
    """One decision about a version."""

    at: str  # UTC, ISO 8601
    by: str
    how: str  # TEST, APPROVAL, ROLLBACK or REJECTION
    why: str
    before: str = ""  # the version that was champion until then; "" for none

    def __str__(self) -> str:
        place = f", in place of version {self.before}" if self.before else ""
        return f"{self.at[:19]}Z{place}, by {self.by} ({self.how}): {self.why}"


def moves(version: "ModelVersion") -> list[Move]:
    """The moves that made this version champion, in order."""
    return [Move(**json.loads(v)) for k, v in sorted(version.tags.items()) if k.startswith(f"{CHAMPION}.")]


def withdrawn(version: "ModelVersion") -> Move | None:
    """Why a person took this version back; None when nobody did, or it was approved since."""
    text = version.tags.get(WITHDRAWN)
    return Move(**json.loads(text)) if text else None


def crown(registry: Registry, version: "ModelVersion", *, instead_of: "ModelVersion | None", by: str, how: str, why: str) -> None:
    """Make the version champion in place of the one that the decision was made against.

    ValueError when its gate is not recorded as passed, or when another was made champion meanwhile.
    """
    require_gate_tag(registry, version)
    before, now = _number(instead_of), _number(registry.at(CHAMPION))
    if now != before:
        raise ValueError(
            f"{registry.name}: version {now or 'none'} has become champion meanwhile, not {before or 'none'}; look at it, try again"
        )
    known = _all_moves(registry)
    move = _begun(known, str(version.version), before, how)
    move = move or Move(datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00"), by, how, why, before)
    registry.tag(version, {f"{CHAMPION}.{move.at}": json.dumps(vars(move))})
    registry.point(CHAMPION, version)
    if instead_of is not None and how == ROLLBACK:
        registry.tag(instead_of, {WITHDRAWN: json.dumps(vars(move))})
    if WITHDRAWN in version.tags:
        registry.untag(version, WITHDRAWN)
    if str(registry.aliases().get(CANDIDATE)) == str(version.version):
        registry.unpoint(CANDIDATE)
    describe(registry, *(one.version for one in (version, instead_of) if one))
    # each writes its move before it looks for others, so of two on two machines at least one sees the other
    if others := _all_moves(registry) - known - {(str(version.version), move)}:
        told = "; ".join(f"version {number} {other}" for number, other in others)
        raise ValueError(
            f"{registry.name}: two moves of the champion at once; version {_number(registry.at(CHAMPION))} is champion now: {told}"
        )


def approve(registry: Registry, number: str | None, *, by: str, why: str) -> "ModelVersion":
    """A person makes the candidate, or the version named, champion. ValueError unless it passed the tests against today's champion."""
    version = registry.version(number) if number else registry.at(CANDIDATE)
    if version is None:
        raise ValueError(f"{registry.name}: no version awaits approval; name one, as in `approve {registry.name}/3`")
    champion, test = registry.at(CHAMPION), json.loads(version.tags.get("champion_test", "{}"))
    title = f"{registry.name}, version {version.version}"
    if champion and champion.version == version.version:
        raise ValueError(f"{title}: is champion already")
    if version.tags.get("better") != "yes" or test.get("better") is not True:
        raise ValueError(
            f"{title}: did not pass the tests against its baselines and the champion; `lineage {registry.name}/{version.version}`"
        )
    if test["against"] != _number(champion):
        against, now = test["against"] or "none", _number(champion) or "none"
        raise ValueError(f"{title}: was tested against champion {against}, but now that is {now}; run register again, which tests anew")
    crown(registry, version, instead_of=champion, by=by, how=APPROVAL, why=why)
    return version


def reject(registry: Registry, *, by: str, why: str) -> "ModelVersion":
    """A person turns the candidate down; it does not become one again by itself."""
    version = registry.at(CANDIDATE)
    if version is None:
        raise ValueError(f"{registry.name}: no version awaits approval")
    move = Move(datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00"), by, REJECTION, why)
    registry.tag(version, {WITHDRAWN: json.dumps(vars(move))})
    registry.unpoint(CANDIDATE)
    describe(registry, version.version)
    return version


def roll_back(registry: Registry, number: str | None, *, by: str, why: str) -> "ModelVersion":
    """Make the version named champion again, or the one that the champion took the place of. Returns it."""
    champion = registry.at(CHAMPION)
    if champion is None:
        raise ValueError(f"{registry.name}: there is no champion to roll back")
    version = registry.version(number or _previous(registry, champion))
    if version.version == champion.version:
        raise ValueError(f"{registry.name}: version {version.version} is champion already")
    crown(registry, version, instead_of=champion, by=by, how=ROLLBACK, why=why)
    return version


def _previous(registry: Registry, champion: "ModelVersion") -> str:
    """What it took the place of when it was promoted; a roll-back to it does not count, so that a second one goes further back."""
    promoted = [move.before for move in moves(champion) if move.how != ROLLBACK]
    if not promoted or not promoted[-1]:
        reason = "was the first" if promoted else "carries no record of what was before it"
        raise ValueError(f"{registry.name}: champion {champion.version} {reason}; name a version with --to")
    return promoted[-1]


def require_gate_tag(registry: Registry, version: "ModelVersion") -> None:
    if version.tags.get("gate") != "passed":
        found = version.tags.get("gate", "no record")
        raise ValueError(
            f"{registry.name}, version {version.version}: its generation's gate says {found!r}, not 'passed', so it can't be champion; "
            "register it again from a chain whose gate passes"
        )


def describe(registry: Registry, *numbers: str | int) -> None:
    """Bring the descriptions of these versions, and that of all together, up to date with their tags."""
    versions = registry.versions()
    for version in versions:
        if str(version.version) in map(str, numbers):
            registry.describe(version, _fitting(_text(version)))
    registry.describe_all(_fitting([*_all_versions(registry, versions)]))


def _fitting(lines: list[str]) -> str:
    """As many of the lines as there is room for, from the first on, and how many there are besides."""
    kept = len(lines)
    while len(text := "\n".join([*lines[:kept], *_left_out(len(lines) - kept)])) > LONGEST:
        kept -= 1
    return text.strip()


def _left_out(num: int) -> list[str]:
    return ["", f"{num} further lines have no room here: MLflow keeps {LONGEST:,} characters."] if num else []


def _text(version: "ModelVersion") -> list[str]:
    tags = version.tags
    lines = [f"Better than the baselines: {tags.get('better', 'not tested')}.", *json.loads(tags.get("reasons", "[]"))]
    lines += ["", "| metric | value [interval] |", "|---|---|"]
    lines += [f"| {k.removeprefix('metric.')} | {v} |" for k, v in tags.items() if k.startswith("metric.")]
    lines += ["", "| made of | |", "|---|---|", *(f"| {title} | {tags[tag]} |" for tag, title in ORIGIN.items() if tags.get(tag))]
    lines += ["", *(f"Champion since {move}" for move in moves(version))]
    if taken := withdrawn(version):
        lines.append(f"Withdrawn {taken}" if taken.how == REJECTION else f"Rolled back {taken.at[:19]}Z, by {taken.by}: {taken.why}")
    return lines


def _all_versions(registry: Registry, versions: list["ModelVersion"]) -> Iterator[str]:
    """A row for each version, the newest first: what a team asks of a model."""
    names: dict[str, list[str]] = {}
    for alias, number in registry.aliases().items():
        names.setdefault(number, []).append(alias)
    yield f"A model that captions, matches and searches: `mlflow models serve -m models:/{registry.name}@{CHAMPION}`."
    yield ""
    yield f"| version | is | model | {' | '.join(SHOWN)} | better than the baselines | learned from |"
    yield "|---" * (len(SHOWN) + 5) + "|"
    for version in reversed(versions):
        tags = version.tags
        metrics = [tags.get(f"metric.{name}", "") for name in SHOWN]
        learned = f"{tags.get('sources', '')} texts of {tags.get('generation', '')}"
        cells = [
            version.version,
            ", ".join(names.get(str(version.version), [])),
            tags.get("model", ""),
            *metrics,
            tags.get("better", ""),
            learned,
        ]
        yield f"| {' | '.join(str(cell) for cell in cells)} |"


def _begun(known: set[tuple[str, Move]], number: str, before: str, how: str) -> Move | None:
    """This very move, where a process that was killed wrote it down and did not come to make it: the newest of all, of this version."""
    last, move = max(known, default=("", None), key=lambda found: found[1].at)
    return move if move and (last, move.before, move.how) == (number, before, how) else None


def _all_moves(registry: Registry) -> set[tuple[str, Move]]:
    return {(str(version.version), move) for version in registry.versions() for move in moves(version)}


def _number(version: "ModelVersion | None") -> str:
    return str(version.version) if version else ""
