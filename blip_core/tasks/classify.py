"""Zero-shot classification: each class is a set of prompts, and a picture gets the class whose prompts are nearest to it.

As CLIP's evaluation (Radford et al. 2021, section 3.1.4): the ITC features of a class's prompts have unit length, and so has their mean;
the cosine of it ranks the classes. ITM may rank the best of them anew, by its log-odds plus the cosine, as retrieval does.

The pictures of a split lie in a folder per class (test/dog/a.jpg), or a CSV or JSON lines has `image` and `label`, or `labels` where a
picture may have several classes or none. classes.csv names the classes, one a row: its name, then prompts of its own, if any. Without it
the classes are the labels that are measured.

C classes, P prompts, I pictures, E width of the ITC space, K candidates of a picture.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.compute.precision import autocast
from blip_core.config.tasks import ClassifyConfig
from blip_core.evaluation.retrieval import OUTRANKED, TEXTS_AT_ONCE
from blip_core.files.rejected import Rejected
from blip_core.intake.formats import split_of_name
from blip_core.intake.formats.columns import is_image_name, texts_of
from blip_core.intake.walk import below
from blip_core.model.blip import MATCHING, Blip
from blip_core.model.network import Network
from blip_core.tasks.pictures import Pictures
from blip_core.tasks.records import Row, examples_of, facts_of, first_of, split_files, text_in
from blip_core.tasks.task import Example, Measured, Result, SetAside, Statistic, checked
from blip_core.tokenizer.tokenizer import Tokenizer

PICTURE = ("image", "file_name", "image_id", "path", "img", "image_path", "filename")
TOP = 5
_HEADINGS = ("class", "class_name", "name", "label")  # of the first column of classes.csv


@dataclass(frozen=True)
class Labelled(Example):
    """`several`: whether a picture may have any number of labels."""

    labels: tuple[str, ...] = ()
    several: bool = False

    @property
    def told(self) -> dict[str, Any]:
        return self.facts | {"label": ", ".join(self.labels)}


@dataclass(frozen=True)
class Classified(Result):
    """`labels`: places in the list of classes; `scores`: of all classes, kept only where a picture may have several labels."""

    labels: tuple[int, ...]
    scores: np.ndarray | None


class ClassifyTask:
    def read(self, folder: Path, split: str, cfg: ClassifyConfig) -> tuple[list[Labelled], list[SetAside]]:
        """A label that classes.csv lacks sets its picture aside."""
        found, aside = _labelled(folder, split)
        if not found:
            return [], aside
        known = class_prompts(folder, found, cfg)
        usable = []
        for example in found:
            if unknown := [label for label in example.labels if label not in known]:
                aside.append(SetAside(example.id, "bad_row", f"no class {unknown[0]!r} in {folder / 'classes.csv'}"))
            else:
                usable.append(example)
        return checked(usable, aside)

    def network(self, base: Blip, cfg: ClassifyConfig) -> Blip:
        base.require("image", "text", "encoder", "contrast", *(MATCHING if cfg.rerank else ()))
        return base

    def measure(
        self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[Labelled], cfg: ClassifyConfig
    ) -> list[Result]:
        assert isinstance(network, Blip)
        prompts = class_prompts(folder, batches.examples, cfg)
        names = list(prompts)
        place = {name: i for i, name in enumerate(names)}
        results: list[Result] = []
        with torch.inference_mode(), autocast(cfg.measure.precision):
            classes_CE = class_features(network, tokenizer, list(prompts.values()), cfg)
            first = [t.to(device()) for t in tokenize(tokenizer, [p[0] for p in prompts.values()], max_tokens=cfg.max_tokens)]
            for examples, pixels in batches:
                scores_IC = _scores(network, network.image_tokens(pixels), classes_CE, first, cfg.rerank)
                for example, scores in zip(examples, scores_IC.cpu().numpy(), strict=True):
                    results.append(_result(example, scores, names, place))
        return results

    def overall(self, results: Sequence[Classified]) -> dict[str, Statistic]:
        """mean_class_recall where each picture has one label, else mAP. Classes without a picture count in neither."""
        if all(r.scores is None for r in results):
            return {"mean_class_recall": _mean_class_recall(results)}
        return {"map": _mean_average_precision(results)} if any(r.labels for r in results) else {}


def class_prompts(folder: Path, examples: Iterable[Labelled], cfg: ClassifyConfig) -> dict[str, list[str]]:
    """The prompts of each class, in the order of classes.csv, or of these examples' labels where there is none. ValueError for a list that
    is empty or names a class twice."""
    path = folder / "classes.csv"
    if not path.exists():
        rows = [[label] for label in sorted({label for e in examples for label in e.labels})]
    else:
        rows = [[cell.strip() for cell in row if cell.strip()] for row in csv.reader(io.StringIO(text_in(path), newline=""))]
        rows = [row for row in rows if row]
        rows = rows[1:] if rows and rows[0][0].lower() in _HEADINGS else rows
    prompts: dict[str, list[str]] = {}
    for name, *own in rows:
        if name in prompts:
            raise ValueError(f"{path}: class {name!r} stands there twice; expected one row for each class")
        prompts[name] = own or [template.replace("{}", name.replace("_", " ")) for template in cfg.templates]
    if not prompts:
        raise ValueError(f"{path}: no class in it, nor a label of a picture; expected rows of class, prompt, prompt, ...")
    return prompts


def class_features(model: Blip, tokenizer: Tokenizer, prompts: list[list[str]], cfg: ClassifyConfig) -> Tensor:
    """The mean of the features of each class's prompts, unit length, fp32: C x E. So many prompts as fit a pass are encoded at a time."""
    flat = [(i, prompt) for i, own in enumerate(prompts) for prompt in own]
    sums_CE = torch.zeros(len(prompts), model.cfg.embed_dim, device=device())
    for start in range(0, len(flat), TEXTS_AT_ONCE):
        owner, texts = zip(*flat[start : start + TEXTS_AT_ONCE], strict=True)
        ids, mask = (t.to(device()) for t in tokenize(tokenizer, list(texts), max_tokens=cfg.max_tokens))
        sums_CE.index_add_(0, torch.tensor(owner, device=device()), model.text_features(ids, mask))
    return F.normalize(sums_CE, dim=-1)


def _scores(model: Blip, image_IND: Tensor, classes_CE: Tensor, first: list[Tensor], rerank: int) -> Tensor:
    """I x C in fp32. ITM reads the first prompt of each candidate; the others stand behind the candidates, in ITC's order."""
    images_IE = model.image_features(image_IND)
    with torch.autocast(device().type, enabled=False):  # half precision would make ties
        cosines_IC = images_IE @ classes_CE.T
    if not rerank:
        return cosines_IC
    best_IK = cosines_IC.topk(min(rerank, len(classes_CE)), dim=1).indices
    keys_values, width = model.keys_values(image_IND), max(1, TEXTS_AT_ONCE // len(image_IND))
    odds = []
    for chosen in best_IK.split(width, dim=1):  # keys and values are those of this batch, the texts at most TEXTS_AT_ONCE
        ids, mask = (t[chosen.flatten()] for t in first)
        logits = model.match_logits(ids, mask, keys_values)
        odds.append((logits[:, 1] - logits[:, 0]).unflatten(0, chosen.shape))
    found_IK = torch.cat(odds, dim=1) + cosines_IC.gather(1, best_IK)
    return (cosines_IC + OUTRANKED).scatter(1, best_IK, found_IK)


def _result(example: Labelled, scores: np.ndarray, names: list[str], place: dict[str, int]) -> Classified:
    labels = tuple(place[label] for label in example.labels)
    order = np.argsort(-scores, kind="stable")
    values = {"top1": float(order[0] in labels)}
    if len(names) >= TOP:  # below, any class is among the best five
        values["top5"] = float(bool(set(order[:TOP].tolist()) & set(labels)))
    kept = scores if example.several else None
    return Classified(example.id, str(example.pictures[0]), values, names[order[0]], example.told, labels, kept)


def _mean_class_recall(results: Sequence[Classified]) -> Statistic:
    _, label = np.unique([r.labels[0] for r in results], return_inverse=True)
    hit = np.array([r.values["top1"] for r in results])

    def statistic(counts: np.ndarray) -> float:
        number = np.bincount(label, weights=counts)
        return float((np.bincount(label, weights=counts * hit)[number > 0] / number[number > 0]).mean())

    return statistic


def _mean_average_precision(results: Sequence[Classified]) -> Statistic:
    """Mean over classes of the mean, over the pictures of a class, of the precision down to that picture."""
    scores = np.stack([r.scores for r in results if r.scores is not None])
    ordered = []
    for c in sorted({c for r in results for c in r.labels}):
        order = np.argsort(-scores[:, c], kind="stable")
        ordered.append((order, np.array([c in r.labels for r in results])[order]))

    def statistic(counts: np.ndarray) -> float:
        found = []
        for order, right in ordered:
            weight = counts[order]
            hits = weight * right
            if total := hits.sum():
                found.append((hits * hits.cumsum() / weight.cumsum().clip(min=1)).sum() / total)
        return float(np.mean(found)) if found else 0.0

    return statistic


def _labelled(folder: Path, split: str) -> tuple[list[Labelled], list[SetAside]]:
    """The rows of a file for the split, or else the pictures in its folders of classes, not yet decoded."""
    by_folder = _in_folders(folder, split) if folder.is_dir() else []
    try:
        files = split_files(folder, split)
    except ValueError as e:
        if by_folder:
            return by_folder, []
        raise ValueError(f"{e}, or pictures in a folder for each class, as {split}/dog/a.jpg") from None
    return examples_of(Pictures(folder), files, "id", _example, (*PICTURE, "label", "labels"))


def _in_folders(folder: Path, split: str) -> list[Labelled]:
    """The class is the folder below the one that speaks of the split."""
    found = []
    for name in filter(is_image_name, below(folder).shown):
        above = PurePosixPath(name).parts[:-1]
        depth = next((i for i, part in enumerate(above[:-1]) if split_of_name(part) == split), None)
        if depth is not None:
            found.append(Labelled(name, (folder / name,), {}, (above[depth + 1],)))
    return found


def _example(row: Row, where: str, pictures: Pictures) -> Labelled:
    """Rejected says what the row lacks."""
    picture = first_of(row, PICTURE)
    several = "labels" in row
    value = row.get("labels" if several else "label")
    if picture is None or (value in (None, "") and not several):
        lacking = f"picture ({', '.join(PICTURE)})" if picture is None else "label or labels"
        raise Rejected("bad_row", f"no {lacking} among its columns {', '.join(row)}")
    labels = (str(value),) if not several else () if value in (None, "", "[]") else texts_of(value, written=True)
    if labels is None:
        raise Rejected("bad_row", f"labels is {value!r}; expected a list of names of classes")
    facts = facts_of(row, (*PICTURE, "label", "labels"))
    return Labelled(str(row.get("id") or where), (pictures.find(picture),), facts, labels, several)
