"""What a recall and CIDEr don't say alone: what chance would have found, and whether many images got one caption."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from blip_core.evaluation.metrics import RECALLS
from blip_core.texts.screens import loops, normalised

COLLAPSED = 0.1  # distinct captions over distinct references; share of the images with one caption, or with a loop
MAX_REPEAT = 3  # a caption is a loop when one to four words stand in it this many times in a row


def chance_levels(num_texts: Sequence[int]) -> dict[str, float]:
    """Recalls of a model that ranks at random: tr_r1 .. ir_r10, the same by ITC and ITM. `num_texts`: of each image."""
    own, texts = np.asarray(num_texts), int(np.sum(num_texts))
    found: dict[str, float] = {}
    for k in RECALLS:
        wrong = np.arange(min(k, texts))[:, None]
        missed = np.prod(np.clip(texts - own - wrong, 0, None) / (texts - wrong), axis=0)
        found |= {f"tr_r{k}": round(float(np.mean(1 - missed)), 9), f"ir_r{k}": round(min(1.0, k / len(own)), 9)}
    return found


def caption_facts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How various the captions of the images are, and for comparison the first reference of each. Case and punctuation aside."""
    said, written = (_words(texts) for texts in (captions, [texts[0] for texts in references]))
    found: dict[str, float] = {"images": len(captions), "captions_distinct": len(set(said))}
    for name, words in (("captions", said), ("references", written)):
        found[f"{name}_distinct_share"] = len(set(words)) / len(words)
        found[f"{name}_most_common_share"] = Counter(words).most_common(1)[0][1] / len(words)
    looping = set(loops(pa.chunked_array([pa.array(said, pa.string())]), MAX_REPEAT).to_pylist())
    return found | {"captions_loop_share": sum(text in looping for text in said) / len(said)}


def alarms(metrics: Mapping[str, float]) -> dict[str, str]:
    """By name, what is wrong with a model. `metrics`: `caption_facts`, and tr_r1 and ir_r1 with their `_low`, `_high` and `_chance`."""
    found = {"captions_collapsed": _collapsed(metrics), "retrieval_at_chance": _at_chance(metrics)}
    return {name: words for name, words in found.items() if words}


def _collapsed(metrics: Mapping[str, float]) -> str:
    images, most = metrics["images"], metrics["captions_most_common_share"]
    faults = []
    if metrics["captions_distinct_share"] < COLLAPSED * metrics["references_distinct_share"]:
        people = round(images * metrics["references_distinct_share"])
        faults.append(f"{metrics['captions_distinct']:,} different ones for {images:,} images, where people wrote {people:,}")
    if most > max(COLLAPSED, 2 / images, 2 * metrics["references_most_common_share"]):
        faults.append(f"one stands at {most:.1%} of the images")
    if metrics["captions_loop_share"] > COLLAPSED:
        faults.append(f"{metrics['captions_loop_share']:.1%} are loops of the same words")
    return f"the captions have collapsed: {', '.join(faults)}" if faults else ""


def _at_chance(metrics: Mapping[str, float]) -> str:
    """Where neither direction finds more at first place than chance does, within its interval."""
    names = {"tr_r1": "text R@1", "ir_r1": "image R@1"}
    if any(metrics[f"{m}_low"] > metrics[f"{m}_chance"] for m in names):
        return ""
    said = [
        f"{name} is {metrics[m]:.2%} [{metrics[f'{m}_low']:.2%}, {metrics[f'{m}_high']:.2%}], chance {metrics[f'{m}_chance']:.2%}"
        for m, name in names.items()
    ]
    return f"retrieval by ITC is at chance: {'; '.join(said)}"


def _words(texts: Sequence[str]) -> list[str]:
    return normalised(pa.chunked_array([pa.array(texts, pa.string())])).to_pylist()
