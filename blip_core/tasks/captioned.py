"""Pictures with captions, which retrieval and captioning learn and are measured by.

A row has a picture and a caption, or several: Karpathy's lists of COCO and Flickr30k, the authors' own lists, COCO's captions, or a CSV,
TSV, JSON lines or Parquet. Its split is that of its column `split`, or else of its file's name. The rows of one picture are one example
of a measurement; in training each caption is an example, as the authors have it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_core.compute.padding import tokenize
from blip_core.config.intake import TextLimits
from blip_core.files.content import hash64
from blip_core.files.rejected import Rejected
from blip_core.intake.formats import named_split
from blip_core.intake.formats.columns import FILES, column, text_columns, texts_in, without_number
from blip_core.tasks.embedded import Embedded
from blip_core.tasks.pictures import Pictures
from blip_core.tasks.records import Row, facts_of, no_file, read_rows, row_files
from blip_core.tasks.task import Example, SetAside, checked
from blip_core.texts.clean import by_rule, tidy
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.step import Batch, TaskBatch

LIMITS = TextLimits(max_chars=1000, rule="paper", max_words=30)  # the authors' rule of captions, for both tasks
PICTURE = ("image", *FILES, "image_id")
_ALONE = ""  # no row has such a key, so that none is joined to another


@dataclass(frozen=True)
class Captioned(Example):
    """`texts`: as they were written, but for white space, one or more; in training one."""

    texts: tuple[str, ...] = ()

    @property
    def cleaned(self) -> list[str]:
        """As they are learned and found: the authors' rule."""
        return [by_rule(text, LIMITS) for text in self.texts]


def read_captioned(folder: Path, split: str) -> tuple[list[Captioned], list[SetAside]]:
    """The usable examples of a split, and what can't be used. ValueError when no row is of the split."""
    rows, aside = rows_of(folder, split, row_files(folder))
    usable, aside = checked(grouped(rows, Pictures(folder), PICTURE, aside), aside)
    return (list(_pairs(usable)) if split == "train" else usable), aside


def grouped(rows: list[tuple[str, Row]], pictures: Pictures, columns: tuple[str, ...], aside: list[SetAside]) -> list[Captioned]:
    """One example of each picture, which stands in the first of these columns that a row has. What can't be used joins `aside`."""
    found: dict[Path | Embedded, Captioned] = {}
    for where, row in rows:
        try:
            example = _captioned(row, pictures, columns)
        except Rejected as e:
            aside.append(SetAside(where, e.reason, e.detail))
            continue
        if texts := _usable(example.texts, where, aside):
            own = found.setdefault(example.pictures[0], replace(example, texts=()))
            found[example.pictures[0]] = replace(own, texts=own.texts + texts)
    return list(found.values())


def pair_tensors(examples: Sequence[Captioned], tokenizer: Tokenizer, *, max_tokens: int, prompt: str = "") -> dict[str, Tensor]:
    """What a Batch has besides the pixels: ids, mask: B x T; image_ids, text_ids: B; prompt_tokens: a number."""
    texts = [example.cleaned[0] for example in examples]
    ids, mask = tokenize(tokenizer, [prompt + text for text in texts], max_tokens=max_tokens)
    identities = {"image_ids": [str(example.pictures[0]) for example in examples], "text_ids": texts}
    hashes = {name: torch.tensor([hash64(value) for value in values]) for name, values in identities.items()}
    return {"ids": ids, "mask": mask, **hashes, "prompt_tokens": torch.tensor(len(tokenizer.encode_prompt(prompt)) - 1)}


def pairs(batch: TaskBatch) -> Batch:
    """A batch of `pair_tensors` as the objectives of pretraining take it."""
    common: dict[str, Any] = {name: value for name, value in vars(batch).items() if name != "tensors"}
    return Batch(**common | batch.tensors | {"prompt_tokens": int(batch.tensors["prompt_tokens"])})


def rows_of(folder: Path, split: str, files: dict[Path, str | None]) -> tuple[list[tuple[str, Row]], list[SetAside]]:
    """Rows of a split with their places. `files`: each with the split that its name speaks of. ValueError when no row is of the split."""
    found, aside = [], []
    for file, told in files.items():
        if told not in (split, None):
            continue
        rows, bad = read_rows([file], _ALONE)
        aside += bad
        for where, row in rows:
            said = row.get("split") or told
            own = named_split(str(said))
            if own == split:
                found.append((where, row))
            elif own is None:
                aside.append(SetAside(where, "unknown_split", f"split {said!r}, expected train, restval, val or test, or a file called so"))
    if not found and not aside:
        raise ValueError(f"{no_file(folder, split, files)}, or with a column split that says so")
    return found, aside


def _captioned(row: Row, pictures: Pictures, columns: tuple[str, ...]) -> Captioned:
    """Rejected says what the row lacks."""
    names = list(row)
    held = [name for name in names if isinstance(row[name], Embedded)]
    file, written = column(held, columns) or column(names, columns), text_columns(names)
    value = row[file] if file else None
    if (
        not isinstance(value, Embedded) and "filename" in row and isinstance(row.get("filepath"), str)
    ):  # Karpathy's lists have the folder apart
        value = f"{row['filepath']}/{row['filename']}"
    if value in (None, "") or not written:
        lacking = f"{pictures.kind} ({', '.join(columns[:3])}, ...)" if written else "caption (caption, captions, text, ...)"
        raise Rejected("bad_row", f"no {lacking} among its columns {', '.join(names)}")
    texts = texts_in(row, written, written=True)
    if texts is None:
        raise Rejected("bad_row", f"{', '.join(written)}: expected a caption or a list of captions, got {str(row[written[0]])[:100]}")
    path = pictures.find(without_number(value) if isinstance(value, str) else value)
    identity = str(path.relative_to(pictures.folder))
    return Captioned(identity, (path,), facts_of(row, (*written, *([file] if file else []), "split", "filename", "filepath")), texts)


def _usable(texts: tuple[str, ...], where: str, aside: list[SetAside]) -> tuple[str, ...]:
    """Those of which the authors' rule leaves something, with single spaces; the others are added to `aside`."""
    found = []
    for text in texts or ("",):
        try:
            tidied = tidy(text, LIMITS)
            by_rule(tidied, LIMITS)
            found.append(tidied)
        except Rejected as e:
            aside.append(SetAside(where, e.reason, e.detail))
    return tuple(found)


def _pairs(examples: list[Captioned]) -> Iterator[Captioned]:
    for example in examples:
        yield from (replace(example, id=f"{example.id}#{n}", texts=(text,)) for n, text in enumerate(example.texts))
