"""Accuracy of answers to questions about pictures, as the evaluations of VQA v2 and of A-OKVQA have it.

VQA v2 (Goyal et al. 2017, section 5 there; the rule is of Antol et al. 2015): ten people answered each question. An answer counts
min(1, matches / 3) against nine of them, and the mean over the ten ways to leave one out is its accuracy: 0, 0.3, 0.6, 0.9, 1 for 0 to 4
people who agree. So one reference alone gives 0 for every answer, and n equal ones give min(1, (n - 1) / 3).

Both sides are normalised first. The official code has two versions of when:
2021  (now) neither side where all people said the same, else both sides wholly.
2017  (the numbers that were published until then, and LAVIS) the answer always; people's answers only lose their punctuation, where they
      differ, so that "the table" of a person is matched by nothing.

Its quirks are kept, for numbers are to be equal: a period between a digit and a letter goes, one before a digit stays, 32 of them at
most go; commas within numbers go, and then every mark goes without a blank; "somebody'd" becomes "somebodyd". The contractions of "I"
never match there, because the text is lower-case by then; they are left out here.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

Rules = Literal["2021", "2017"]

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_MOST_PERIODS = 32  # there a flag of `re` stands where the count belongs
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's
isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _lacking_one(word: str) -> list[str]:
    """The spellings of a contraction that lack one of its apostrophes."""
    return [word[: m.start()] + word[m.end() :] for m in re.finditer("'", word)]


_SPELT = {wrong: word for word in _CONTRACTIONS for wrong in _lacking_one(word)} | {"somebody'd": "somebodyd"}


def normalise(answer: str) -> str:
    """Lower-case, without punctuation and articles, with digits for number words and with the apostrophes of contractions."""
    words = (_NUMBERS.get(word, word) for word in _without_marks(answer).lower().split())
    return " ".join(_SPELT.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str], *, rules: Rules = "2021") -> float:
    """The official accuracy of one answer, in [0, 1]. `people`: what each person said, ten as a rule. ValueError where there is none."""
    if not people:
        raise ValueError("no answer of a person to hold an answer against; expected one or more")
    answer = _blanks(answer)
    if rules == "2021":
        people = [_blanks(p) for p in people]
    differ = len(set(people)) > 1
    if differ or rules == "2017":
        answer = normalise(answer)
    if differ:
        people = [normalise(p) if rules == "2021" else _without_marks(p) for p in people]
    equal = np.array([p == answer for p in people])
    others = equal.sum() - equal  # matches among those that are left when each one is left out
    return float(np.minimum(1, others / 3).mean())


def direct_accuracy(answer: str, people: Sequence[str]) -> float:
    """A-OKVQA's accuracy of direct answers (Schwenk et al. 2022): min(1, matches / 3), nobody left out, no normalisation."""
    return min(1.0, sum(p == answer for p in people) / 3)


def _blanks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """A mark goes where a blank stands on either side of one like it, or where a number has commas; else a blank takes its place."""
    closed = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _MARKS:
        out = out.replace(mark, "" if closed or f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)
