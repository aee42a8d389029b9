"""How many texts a round kept and how many of them are false, as a section of the report."""

from blip_core.report import figures
from blip_core.report.digest import RoundDigest
from blip_core.report.filters import limits
from blip_core.report.findings import Findings
from blip_core.report.page import Picture, Section, Table
from blip_core.report.wording import MISSING, percent
from blip_core.sample.truth import TrueNoise
from blip_core.selection.judged_noise import LABELS, bounded_by

SCORE_REASONS = ("kept", "below_threshold")  # the usual two


def noise_section(found: Findings) -> Section:
    header = [
        "round",
        "texts",
        "candidates",
        "kept",
        "noise\nratio",
        "false\nbefore",
        "false\nafter",
        "gate's\nestimate",
        "its upper\nbound",
        "by",
    ]
    rows = [_noise_row(found, r, source) for r, digest in found.rounds.items() for source in digest.sources]
    truth = "the sample world's truth says so" if found.truth else "not known: there is no data/truth.parquet"
    about = [
        "noise ratio: share of the texts that the filter scored which it rejected, whatever else speaks against them.",
        f"false before, after: share of the candidates and of the kept texts that are not true of their image ({truth}).",
        f"gate's estimate: the same share after, with its upper bound at {found.params.gate.confidence:.0%} confidence. By people's labels "
        "where they judged enough kept texts of the source. Else by the scores of planted pairs of known truth, which errs to the high "
        "side, the more the weaker the filter; n/a for texts of captioners, as no pair can be planted that is wrong in their own way.",
    ]
    parts: list[str | Table] = [Table(header, rows, left=2), "\n".join([*about, *_other_reasons(found)])]
    kinds = [row for r, digest in found.rounds.items() if "web" in digest.noise for row in _kind_rows(r, digest.noise["web"])]
    if kinds:
        parts.append(Table(["round", "kind of web text", "true?", "texts", "kept", "share kept", "of all kept"], kinds, left=3))
    thresholds = {r: limits(found, found.filters[r][0]) for r in found.rounds}
    png = figures.score_histograms({r: d.bins for r, d in found.rounds.items()}, thresholds=thresholds)
    return Section(
        "Noise in the texts",
        parts,
        [Picture("scores", png, "Histograms of the match scores of the texts of each source and of the controls, by truth")],
        in_text=2,
    )


def kept_lines(found: Findings) -> list[str]:
    """A sentence for each round and source."""
    lines = []
    for r, digest in found.rounds.items():
        for source in digest.sources:
            noise = digest.noise.get(source)
            change = f"; false ones: {percent(noise.before)} -> {percent(noise.after)}" if noise else ""
            lines.append(f"{r}, {source} texts: {_kept(digest, source):,} of {digest.texts(source):,} kept{change}")
    return lines


def _noise_row(found: Findings, r: str, source: str) -> list[str]:
    digest, gate = found.rounds[r], found.gates.get(r, {})
    noise = digest.noise.get(source)
    true = [noise.before, noise.after] if noise else [None, None]
    by = bounded_by(gate).get(source, MISSING)
    estimate = [gate.get(f"{'judged' if by == LABELS else 'residual'}_noise_{source}{end}") for end in ("", "_upper")]
    by = f"{gate[f'judged_texts_{source}']:,} labels" if by == LABELS else by
    counts = [f"{digest.texts(source):,}", f"{_kept(digest, source):,}"]
    return [r, source, *counts, *map(percent, [gate.get(f"noise_{source}"), *true, *estimate]), by]


def _other_reasons(found: Findings) -> list[str]:
    dropped = [
        f"{n:,} {source} {reason.replace('_', ' ')} ({r})"
        for r, digest in found.rounds.items()
        for (source, reason), n in sorted(digest.reasons.items())
        if reason not in SCORE_REASONS
    ]
    return [f"dropped for another reason than the score: {', '.join(dropped)}."] if dropped else []


def _kind_rows(r: str, noise: TrueNoise) -> list[list[str]]:
    words: dict[float | None, str] = {0.0: "true", 1.0: "false"}
    return [
        [
            r,
            name,
            words.get(kind.before, "mixed"),
            f"{kind.texts:,}",
            f"{kind.kept:,}",
            percent(kind.kept / kind.texts),
            percent(_ratio(kind.kept, noise.kept)),
        ]
        for name, kind in noise.kinds().items()
    ]


def _kept(digest: RoundDigest, source: str) -> int:
    return digest.reasons[source, "kept"]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
