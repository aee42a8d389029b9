"""Lists that tools for training, labelling and looking open as they are: open_clip, kohya's sd-scripts, LLaVA, Label Studio, FiftyOne.

Images lie in a folder for each shard, and whatever a list has no place for of its own stands in it as a further column or key.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from blip_core.export.formats import (
    COLUMNS,
    CocoWriter,
    ImageFolderWriter,
    Item,
    ParquetWriter,
    SalesforceWriter,
    WebDatasetWriter,
    Writer,
)
from blip_core.metadata.fields import free_name

# texts that pandas.read_csv takes for missing: its `na_values` by default
_MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
_MISSING |= {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
_QUESTION = "<image>\nDescribe the image in one sentence."
_LABELLING = """\
<View>
  <Image name="image" value="$image"/>
  <TextArea name="caption" toName="image" editable="true" rows="2" maxSubmissions="1"/>
</View>
"""


class _ListWriter(Writer):
    """A JSON list NAME.json for each split."""

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for file in self._lists.values():
            file.write("]\n")
        super().__exit__(kind, *details)

    def _add(self, split: str, row: dict[str, Any]) -> None:
        self._append(f"{split}.json", row, begin="[")


def _row(item: Item, own: dict[str, Any], candidate: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the tool reads, and all else that is known of the image, and of the text where the row is of one. A source's field gives way to
    what the tool reads: `title` is `source_title` then."""
    facts = {"key": item.key, "image_id": item.image_id, "width": item.width, "height": item.height}
    of_text = {name: candidate[name] for name in COLUMNS} if candidate else {}
    told = {free_name(name, own.keys()): value for name, value in item.told.items()}
    return {**own, **facts, **of_text, **told}


class OpenClipWriter(Writer):
    """<split>.csv, tabs between its columns `filepath` and `title`, a row for each text: the defaults of open_clip's --csv-separator,
    --csv-img-key and --csv-caption-key (open_clip_train/data.py, CsvDataset). Paths are below the export's folder."""

    def __init__(self, folder: Path, types: dict[str, pa.DataType]):
        super().__init__(folder, types)
        self._tables: dict[str, csv.DictWriter[str]] = {}

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        for item in items:
            path = f"images/{stem}/{self._image(f'images/{stem}', item)}"
            for candidate in item.candidates:
                text = candidate["text"]
                title = f" {text}" if text in _MISSING else text  # else open_clip would train on "nan"
                self._add(split, _row(item, {"filepath": path, "title": title}, candidate))

    def _add(self, split: str, row: dict[str, Any]) -> None:
        if split not in self._tables:
            self._lists[split] = self._open(split)
            fields = [free_name(name, ("filepath", "title")) for name in self.types]  # those without a value are not in the row
            columns = dict.fromkeys([*row, *fields])
            self._tables[split] = csv.DictWriter(self._lists[split], list(columns), delimiter="\t")
            self._tables[split].writeheader()
        self._tables[split].writerow(row)

    def _open(self, split: str) -> TextIO:
        return (self.folder / f"{split}.csv").open("w", encoding="utf-8", newline="")


class KohyaWriter(_ListWriter):
    """<split>/1_<shard>/ with key.jpg and key.txt: what sd-scripts takes as --train_data_dir=<split> --caption_extension=.txt (docs of its
    train_network: folders are named REPEATS_NAME). Of a .txt it reads the first line, with --enable_wildcard any of them: a line is a text.
    """

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        for item in items:
            place = f"{split}/1_{stem}"
            name = self._image(place, item)
            texts = [item.first, *(text for text in item.texts if text != item.first)]
            lines = [" ".join(text.splitlines()) for text in texts]
            (self.folder / place / f"{item.key}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            for candidate in item.candidates:
                self._add(split, _row(item, {"image": f"{place}/{name}", "text": candidate["text"]}, candidate))


class LlavaWriter(_ListWriter):
    """<split>.json as LLaVA's --data_path, images/ as its --image_folder (its docs/Finetune_Custom_Data.md): an entry for each text."""

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        for item in items:
            image = f"{stem}/{self._image(f'images/{stem}', item)}"
            for number, candidate in enumerate(item.candidates):
                said = candidate["text"].replace("<image>", "image")  # LLaVA would look for a second picture
                turns = [{"from": "human", "value": _QUESTION}, {"from": "gpt", "value": said}]
                entry = {"id": f"{item.key}-{number}", "image": image, "conversations": turns}
                self._add(split, _row(item, entry, candidate))


class LabelStudioWriter(_ListWriter):
    """<split>.json of tasks, each text a prediction (Label Studio's guides `tasks` and `predictions`), and labelling.xml, the project's
    interface. Pictures are local files: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is the export's folder."""

    def __init__(self, folder: Path, types: dict[str, pa.DataType]):
        super().__init__(folder, types)
        (folder / "labelling.xml").write_text(_LABELLING, encoding="utf-8")

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        for item in items:
            place = f"images/{stem}/{self._image(f'images/{stem}', item)}"
            data = _row(item, {"image": f"/data/local-files/?d={place}", "candidates": json.dumps(item.candidates)})
            self._add(split, {"data": data, "predictions": [_prediction(item.key, n, c) for n, c in enumerate(item.candidates)]})


def _prediction(key: str, number: int, candidate: dict[str, Any]) -> dict[str, Any]:
    """`score`: the calibrated match, by which Label Studio can sort."""
    told = {"from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": [candidate["text"]]}}
    score = {} if candidate["match"] is None else {"score": candidate["match"]}
    return {"model_version": candidate["model"] or candidate["source"], "result": [{"id": f"{key}-{number}", **told}], **score}


class FiftyOneWriter(Writer):
    """samples.json of a fiftyone.types.FiftyOneDataset, each sample with its split as a tag. The form without metadata.json, which its
    importer takes in every version since 0.8 (fiftyone/utils/data/importers.py): it finds the fields and their types itself.

    `candidates` is JSON in a text, as in a WebDataset."""

    def write(self, split: str, stem: str, items: Iterator[Item]) -> None:
        for item in items:
            path = f"data/{stem}/{self._image(f'data/{stem}', item)}"
            best = {name: item.best[name] for name in ("source", "reason", "match")}
            own = {"caption": item.first, "captions": item.texts, **best, "candidates": json.dumps(item.candidates)}
            row = _row(item, {"filepath": path, "tags": [split], "metadata": None, **own})
            sample = {name: value for name, value in row.items() if value is not None}
            self._append("samples.json", sample, begin='{"samples": [')

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for file in self._lists.values():
            file.write("]}\n")
        super().__exit__(kind, *details)


WRITERS: dict[str, type[Writer]] = {
    "webdataset": WebDatasetWriter,
    "imagefolder": ImageFolderWriter,
    "parquet": ParquetWriter,
    "coco": CocoWriter,
    "salesforce": SalesforceWriter,
    "open_clip": OpenClipWriter,
    "kohya": KohyaWriter,
    "llava": LlavaWriter,
    "label_studio": LabelStudioWriter,
    "fiftyone": FiftyOneWriter,
}
