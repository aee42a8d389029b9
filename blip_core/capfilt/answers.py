"""What becomes of a model's answer before it is a candidate: thoughts are cut, sentences parted."""

import re
from collections.abc import Iterator
from typing import Literal

from blip_core.capfilt.med import Caption

_OPENING, _CLOSING = r"(?:<think(?:ing)?>|◁think▷)", r"(?:</think(?:ing)?>|◁/think▷)"
_THOUGHTS = re.compile(f"{_OPENING}.*?(?:{_CLOSING}|$)", re.DOTALL)
_REST_OF_THOUGHTS = re.compile(f"^.*{_CLOSING}", re.DOTALL)
MOST_SENTENCES = 100  # of an answer, each with a number of its own; what is beyond them stays with the last one


def without_thoughts(text: str, *, opened: bool = False) -> str:
    """The answer alone. `opened`: the prompt ends within a block of thoughts; "" where the block never ends."""
    if opened and not re.search(_CLOSING, text):
        return ""
    return _REST_OF_THOUGHTS.sub("", _THOUGHTS.sub("", text)).strip()


def parted(answer: Caption, sentences: Literal["all", "first", "split"]) -> list[Caption]:
    """The candidates that an answer is. Only the last sentence of one that was cut off is cut off."""
    if sentences == "all":
        return [answer]
    texts = list(_sentences(answer.text)) or [""]
    if len(texts) > MOST_SENTENCES:
        texts[MOST_SENTENCES - 1 :] = [" ".join(texts[MOST_SENTENCES - 1 :])]
    parts = [Caption(text, False) for text in texts[:-1]] + [Caption(texts[-1], answer.truncated)]
    return parts[:1] if sentences == "first" else parts


def _sentences(text: str) -> Iterator[str]:
    from sentencex import segment

    for sentence in segment("en", text):
        if sentence.strip():
            yield sentence.strip()
