"""A model that answers questions as a filter: the log-odds of yes when asked whether a text fits (VQAScore, Lin et al. 2024, section 3).

The texts of a picture differ behind it alone, so the picture and what stands before it pass once, and all its texts continue from there.
A text is as long as it is: the batch is filled up at the end, which no token before that sees.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blip_core.capfilt.pair_scores import PairScores
from blip_core.capfilt.vlm import Vlm, alike, load_vlm, repeat_cache, together
from blip_core.compute.distributed import device
from blip_core.compute.padding import pad

_ROWS = 64  # texts of a pass: their logits take as many vocabularies as the texts have lengths
_BLANK = np.zeros((112, 112, 3), np.uint8)
_PROBES = ("Is it a red ball?", 'Does it show "2 dogs"? Yes or no.')
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the largest logit


@dataclass(frozen=True)
class Ending:
    """What follows on the picture's last token when a model is asked something."""

    vlm: Vlm
    around: tuple[str, str] | None = None  # the words before and behind the question; None: they can't be told, so the processor is asked

    @classmethod
    def of(cls, vlm: Vlm) -> "Ending":
        """The tokenizer alone makes it where that gives what the processor does, which would need a picture each time."""
        slow = cls(vlm)
        before, found, behind = vlm.tokenizer.decode(slow.ids(_PROBES[0])).partition(_PROBES[0])
        quick = cls(vlm, (before, behind))
        return quick if found and all(quick.ids(probe) == slow.ids(probe) for probe in _PROBES) else slow

    def ids(self, question: str) -> list[int]:
        if self.around is not None:
            return self.vlm.tokenizer(question.join(self.around), add_special_tokens=False)["input_ids"]
        inputs = self.vlm.inputs(_BLANK, question)
        return inputs["input_ids"][0, _behind_picture(self.vlm, inputs) :].tolist()


@dataclass(frozen=True)
class JudgeFilter:
    """`question` has {text} in it; `itc` stays empty."""

    vlm: Vlm
    identity: str
    question: str
    ending: "Ending"
    yes: list[int] = field(repr=False)  # the tokens that say it
    no: list[int] = field(repr=False)

    def prepare(self, picture: np.ndarray) -> dict[str, Tensor]:
        """The inputs as far as the picture's last token."""
        inputs = self.vlm.inputs(picture, self.question)
        length, cut = inputs["input_ids"].shape[1], _behind_picture(self.vlm, inputs)
        before = {name: value[:, :cut] if value.shape[:2] == (1, length) else value for name, value in inputs.items()}
        return {name: value for name, value in before.items() if name != "attention_mask"}  # nothing is padded

    def encode(self, texts: list[str]) -> list[list[int]]:
        """What follows on the picture's last token: the question with the text, and what opens the answer."""
        return [self.ending.ids(self.question.replace("{text}", self.vlm.plain(text))) for text in texts]

    @torch.inference_mode()
    def score(self, pictures: list[dict[str, Tensor]], texts: list[list[list[int]]]) -> PairScores:
        found: list[Tensor] = [torch.empty(0)] * len(pictures)
        for group in alike(pictures):
            at_once = max(1, _ROWS // max(len(texts[i]) for i in group))
            for some in (group[start : start + at_once] for start in range(0, len(group), at_once)):
                for i, logits in zip(some, self.logits([pictures[i] for i in some], [texts[i] for i in some]), strict=True):
                    found[i] = logits[:, self.yes].logsumexp(-1) - logits[:, self.no].logsumexp(-1)
        odds = torch.cat(found).double().cpu().numpy()
        return PairScores(odds, np.full(len(odds), np.nan))

    def logits(self, pictures: list[dict[str, Tensor]], texts: list[list[list[int]]]) -> list[Tensor]:
        """Of the answer's first token, fp32, texts x V for each of the pictures, whose inputs are alike."""
        most = max(map(len, texts))
        rows = [text for own in texts for text in own + own[:1] * (most - len(own))]  # equally many of each picture
        past = self.vlm.model(**together(pictures), use_cache=True, logits_to_keep=1).past_key_values
        repeat_cache(past, len(pictures), most)
        ids, last = pad(rows, 0)[0].to(device()), torch.tensor([len(row) - 1 for row in rows], device=device())
        lengths, place = last.unique(return_inverse=True)
        logits = self.vlm.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=lengths).logits
        logits = logits[torch.arange(len(rows), device=device()), place].float()
        return [own[: len(t)] for own, t in zip(logits.unflatten(0, (len(pictures), most)), texts, strict=True)]


def load_judge(folder: Path, identity: str, *, question: str, precision: str) -> JudgeFilter:
    """ValueError when transformers can't read the folder, or the model can't be asked so."""
    return judge_by(load_vlm(folder, precision=precision), folder, identity, question=question)


def judge_by(vlm: Vlm, folder: Path, identity: str, *, question: str) -> JudgeFilter:
    """A model of a folder as a judge. ValueError when it can't be asked so."""
    fault = f"{folder}: a {vlm.kind} can't judge: "
    marked = getattr(vlm.model.config, "image_token_id", None) is not None
    if not marked or vlm.model.config.is_encoder_decoder or not vlm.model._supports_logits_to_keep():
        raise ValueError(
            f"{fault}expected a decoder that has the picture among its tokens, as of Qwen2-VL or LLaVA; it may do as a captioner"
        )
    if vlm.opens_thoughts(question):
        raise ValueError(f"{fault}its template opens a block of thoughts, so an answer does not begin with yes or no; change the template")
    yes, no = (_spellings(vlm, word) for word in ("yes", "no"))
    if not yes or not no:
        raise ValueError(f"{fault}its tokenizer has no token of its own for {'no' if yes else 'yes'}")
    judge = JudgeFilter(vlm, identity, question, Ending.of(vlm), yes, no)
    if not _goes_on(judge):
        raise ValueError(f"{fault}what it makes of the picture depends on the text behind it, and here the texts of a picture share that")
    return judge


def _spellings(vlm: Vlm, word: str) -> list[int]:
    forms = [blank + form for blank in ("", " ") for form in (word, word.capitalize(), word.upper())]
    ids = [vlm.tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
    return sorted({own[0] for own in ids if len(own) == 1})


def _behind_picture(vlm: Vlm, inputs: dict[str, Tensor]) -> int:
    """How many tokens there are as far as the picture's last one."""
    return int((inputs["input_ids"][0] == vlm.model.config.image_token_id).nonzero()[-1]) + 1


@torch.inference_mode()
def _goes_on(judge: JudgeFilter) -> bool:
    """Whether the parted prompt gives the logits of the whole one."""
    question = judge.question.replace("{text}", _PROBES[0])
    whole = judge.vlm.model(**together([judge.vlm.inputs(_BLANK, question)]), logits_to_keep=1).logits[0, -1].float()
    (parted,) = judge.logits([judge.prepare(_BLANK)], [judge.encode([_PROBES[0]])])
    return bool((parted[0] - whole).abs().max() <= _TOLERANCE[judge.vlm.model.dtype] * whole.abs().max())
