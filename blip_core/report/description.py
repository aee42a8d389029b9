"""The report's section on what each round did to the texts, by the files that stage describe wrote."""

from typing import Any

from blip_core.explain.describe import CRAWL, KNOWLEDGE, SOURCES
from blip_core.report.page import Section, Table
from blip_core.report.wording import amount, number, percent

WORDS = {
    "names": "names",
    "numbers": "numbers",
    "rare": "rare words",
}
SHOWN = 12  # examples in a line


def description_section(descriptions: dict[str, dict[str, Any]], *, rare_images: int) -> Section:
    """`descriptions` by round."""
    rounds = descriptions.items()
    noise = [_noise_row(r, row) for r, found in rounds for row in found["noise"]]
    kept = [_kept_row(r, kind, found["retention"][kind]) for r, found in rounds for kind in KNOWLEDGE]
    sources = [_source_row(r, source, found["sources"][source]) for r, found in rounds for source in CRAWL]
    diversity = [row for r, found in rounds for source in SOURCES if (row := _diversity_row(r, source, found["diversity"][source]))]
    about = (
        "Of the names, numbers and rare words that the base's web texts had, what the kept texts of the crawl in the next generation "
        "still have. of words: different words; by use: weighted by the images they stood at; at its image: uses whose own image still "
        f"has the word; by synthetic: different words that synthetic texts have. A rare word stood at {rare_images} images at most."
    )
    sizes = ", ".join(f"{found['diversity']['sample_words']:,} ({r})" for r, found in rounds)
    parts: list[str | Table] = [
        Table(["round", "texts", "sampler", "captioner", "judged", "noise\nratio", "kept", "other reasons"], noise, left=4),
        Table(
            ["round", "texts", "judged", "noise\nratio", *(f"{WORDS[kind]}\nat image" for kind in KNOWLEDGE)],
            list(filter(None, sources)),
            left=2,
        ),
        "Noise and knowledge side by side. at image: of the uses of such words in the base's web texts, those whose own image still has "
        "the word in a kept text of this source.",
        Table(["round", "what", "words", "kept,\nof words", "by use", "at its\nimage", "by\nsynthetic"], kept, left=2),
        "\n".join([about, *(line for r, found in rounds for line in _examples(r, found["retention"]))]),
        Table(
            ["round", "kept texts", "texts", "vocabulary", "distinct-1", "distinct-2", "words,\nmean", "5 % to\n95 %", "said\nbefore"],
            diversity,
            left=2,
        ),
        f"distinct-1 and distinct-2: different words and pairs of words, of equally many words of each source: {sizes}. "
        "said before: texts that an earlier text of the source has word for word.",
    ]
    return Section("What the texts gained and lost", parts, in_text=0)


def _noise_row(r: str, row: dict[str, Any]) -> list[str]:
    usual = ("kept", "below_threshold")
    others = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(row["reasons"].items()) if reason not in usual)
    counts = [amount(row["judged"]), percent(row["noise"]), amount(row["kept"])]
    return [r, row["source"], row["sampler"] or "-", row["model"][:12] or "-", *counts, others or "-"]


def _source_row(r: str, source: str, found: dict[str, Any]) -> list[str] | None:
    if not found["judged"]:
        return None
    return [r, source, amount(found["judged"]), *(percent(found[name]) for name in ("noise", *KNOWLEDGE))]


def _kept_row(r: str, kind: str, found: dict[str, Any]) -> list[str]:
    shares = (percent(found[name]) for name in ("kept", "kept_weighted", "kept_at_image", "in_synthetic"))
    return [r, WORDS[kind], amount(found["words"]), *shares]


def _examples(r: str, retention: dict[str, Any]) -> list[str]:
    lists = {f"lost {WORDS[kind]}": retention[kind]["most_lost"] for kind in KNOWLEDGE}
    lists["words that synthetic texts added"] = retention["added_by_synthetic"]["most"]
    return [f"{r}, {name}: {', '.join(f'{word} ({n})' for word, n in words[:SHOWN])}" for name, words in lists.items() if words]


def _diversity_row(r: str, source: str, found: dict[str, Any]) -> list[str] | None:
    if not found["texts"]:
        return None
    length = found["length"]
    numbers = [number(found["distinct_1"]), number(found["distinct_2"]), f"{length['mean']:.1f}", f"{length['p5']} to {length['p95']}"]
    return [r, source, amount(found["texts"]), amount(found["vocabulary"]), *numbers, percent(found["duplicates"])]
