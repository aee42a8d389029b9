"""Questions about pictures (paper section 5.4): the answers are learned by their share among people's, and given by ranking a list or
freely.

A row has a picture, a question, an id where several files are joined, and answers: VQA v2's two files, Visual Genome, OK-VQA, A-OKVQA,
VizWiz, GQA, TextVQA and the authors' own lists, or a CSV or JSON lines with `image, question, answer` or `answers`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.compute.precision import autocast
from blip_core.config.tasks import AnswersConfig
from blip_core.evaluation.answers import direct_accuracy, vqa_accuracy
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import list_in
from blip_core.model.blip import Blip
from blip_core.model.generate import Limits, beam_search
from blip_core.model.network import Network
from blip_core.model.vqa import Vqa, rank_answers, vqa_of
from blip_core.tasks.pictures import Pictures
from blip_core.tasks.records import Row, examples_of, facts_of, first_of, split_files, text_in
from blip_core.tasks.task import Example, Measured, Result, SetAside, Statistic, checked
from blip_core.texts.clean import clean_question
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.objectives import entropy
from blip_core.training.step import Losses, Objective, TaskBatch

QUESTION, PICTURE = (
    ("question", "sent"),
    ("image", "image_id", "imageId", "img_id", "image_name", "file_name", "img", "image_path", "filename"),
)
IDENTITY = ("question_id", "questionId", "qa_id", "id")
ANSWERS = ("answers", "direct_answers", "answer", "label")


@dataclass(frozen=True)
class Question(Example):
    """`answers`: what people said, each with its share."""

    question: str = ""
    answers: tuple[tuple[str, float], ...] = ()
    people: tuple[str, ...] = ()
    direct: bool = False  # A-OKVQA's answers, which have an accuracy of their own

    @property
    def told(self) -> dict[str, Any]:
        return self.facts | {"question": self.question}


class VqaTask:
    def read(self, folder: Path, split: str, cfg: AnswersConfig) -> tuple[list[Question], list[SetAside]]:
        return checked(*questions(Pictures(folder), folder, split, PICTURE))

    def network(self, base: Blip, cfg: AnswersConfig) -> Vqa:
        return vqa_of(base)

    def objective(self, network: Network, cfg: AnswersConfig) -> Objective:
        return AnswerObjective(cfg.label_smoothing)

    def tensors(self, examples: Sequence[Question], tokenizer: Tokenizer, cfg: AnswersConfig) -> dict[str, Tensor]:
        """ids, mask: Q x T of the questions. answer_ids, answer_mask: A x T; owner: A, the question of each; weight: A."""
        ids, mask = tokenize(tokenizer, [e.question for e in examples], max_tokens=cfg.optim.max_tokens)
        flat = [(i, text, weight) for i, e in enumerate(examples) for text, weight in e.answers]
        owner, texts, weights = zip(*flat, strict=True)
        answer_ids, answer_mask = tokenize(tokenizer, list(texts), max_tokens=cfg.max_answer_tokens)
        owners, shares = torch.tensor(owner), torch.tensor(weights, dtype=torch.float)
        return {"ids": ids, "mask": mask, "answer_ids": answer_ids, "answer_mask": answer_mask, "owner": owners, "weight": shares}

    def measure(
        self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[Question], cfg: AnswersConfig
    ) -> list[Result]:
        assert isinstance(network, Vqa)
        listed = network.kept["answers"] if cfg.answers == "rank" else []
        encoded = [t.to(device()) for t in tokenize(tokenizer, listed, max_tokens=cfg.max_answer_tokens)] if listed else []
        results = []
        for examples, pixels in batches:
            ids, mask = (t.to(device()) for t in tokenize(tokenizer, [e.question for e in examples], max_tokens=cfg.optim.max_tokens))
            with torch.inference_mode(), autocast(cfg.measure.precision):
                memory = network.memory(pixels, ids, mask)
                if listed:
                    said = [listed[i] for i in rank_answers(network, memory, encoded[0], encoded[1], best=cfg.best).tolist()]
                else:
                    limits = Limits(min_tokens=1, max_tokens=cfg.max_answer_tokens - 1)
                    written = beam_search(network, memory, [tokenizer.dec], limits, beams=cfg.beams)[:, 0].tolist()
                    said = [tokenizer.decode(w) for w in written]
            results += [_result(e, answer, cfg) for e, answer in zip(examples, said, strict=True)]
        return results

    def overall(self, results: Sequence[Result]) -> dict[str, Statistic]:
        return {}

    def kept(self, folder: Path, examples: Sequence[Question]) -> dict[str, Any]:
        return {"answers": answer_list(folder, examples)}


def questions(pictures: Pictures, folder: Path, split: str, columns: tuple[str, ...]) -> tuple[list[Question], list[SetAside]]:
    """Of a split, whose pictures stand in the first of these columns that holds anything; none is decoded."""
    example, names = partial(_question, columns=columns), (*QUESTION, *columns, *IDENTITY, *ANSWERS)
    return examples_of(pictures, split_files(folder, split), "question_id", example, names)


class AnswerObjective(Objective):
    """LM of each answer, weighed by its share among those of its question, a mean over the questions (the authors' code; no equation in
    the paper)."""

    uses_all_parameters = False

    def __init__(self, label_smoothing: float):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, model: Vqa, batch: TaskBatch) -> Losses:
        t = batch.tensors
        memory = [tuple(x[t["owner"]] for x in layer) for layer in model.memory(batch.pixels, t["ids"], t["mask"])]
        losses = model.answer_loss(memory, t["answer_ids"], t["answer_mask"], label_smoothing=self.label_smoothing)
        return {"lm": (losses * t["weight"]).sum() / len(t["ids"])}

    def vitals(self, batch: TaskBatch) -> dict[str, float]:
        """Chance: each token of an answer by its frequency, as many as an answer has on average."""
        ids, mask = batch.tensors["answer_ids"][:, 1:], batch.tensors["answer_mask"][:, 1:]
        return {"lm_chance": entropy(ids[mask]) * float(mask.sum()) / len(ids)}


def answer_list(folder: Path, examples: Sequence[Question]) -> list[str]:
    """The answers that are ranked: those of answers.txt, or all that these examples have, the most frequent first."""
    own = folder / "answers.txt"
    if own.exists():
        listed = list(dict.fromkeys(line.strip() for line in text_in(own).splitlines() if line.strip()))
        if not listed:
            raise ValueError(f"{own}: no answer in it; expected one a line")
        return listed
    counts = Counter(a for e in examples for a, _ in e.answers)
    return sorted(counts, key=lambda a: (-counts[a], a))


def _question(row: Row, where: str, pictures: Pictures, columns: tuple[str, ...]) -> Question:
    """Rejected says what the row lacks."""
    question, picture = first_of(row, QUESTION), first_of(row, columns)
    if not isinstance(question, str) or picture is None:
        lacking = f"question ({', '.join(QUESTION)})" if not isinstance(question, str) else f"{pictures.kind} ({', '.join(columns)})"
        raise Rejected("bad_row", f"no {lacking} among its columns {', '.join(row)}")
    people, direct = _people(row)
    counts = Counter(text for p in people if (text := p.strip()))
    if not counts:
        raise Rejected("bad_row", f"no answer ({', '.join(ANSWERS)}) among its columns {', '.join(row)}")
    identity = next((row[n] for n in IDENTITY if row.get(n) is not None), where)
    facts = facts_of(row, (*QUESTION, *columns, *ANSWERS))
    shares = tuple((text, n / len(people)) for text, n in counts.items())
    return Question(str(identity), (pictures.find(picture),), facts, clean_question(question), shares, tuple(people), direct)


def _people(row: Row) -> tuple[list[str], bool]:
    """What each person said, and whether they are A-OKVQA's direct answers."""
    name = next((n for n in ANSWERS if row.get(n) not in (None, "", [])), None)
    if name is None:
        return [], False
    value = row[name]
    if isinstance(value, str):
        value = list_in(value) or value
    said = [v.get("answer") if isinstance(v, dict) else v for v in (value if isinstance(value, list) else [value])]
    return [str(s) for s in said if s is not None], name == "direct_answers"


def _result(example: Question, answer: str, cfg: AnswersConfig) -> Result:
    """One reference alone counts by equality, for the leave-one-out rule gives 0 to every answer there."""
    people = example.people
    if example.direct:
        accuracy = direct_accuracy(answer, people)
    elif len(people) == 1:
        accuracy = vqa_accuracy(answer, list(people) * 10, rules=cfg.rules)
    else:
        accuracy = vqa_accuracy(answer, people, rules=cfg.rules)
    return Result(example.id, str(example.pictures[0]), {"accuracy": accuracy}, answer, example.told)
