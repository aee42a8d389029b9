"""How each form of a data set is opened: the part of its card whose blocks of Python run as they stand."""

import json
from typing import TYPE_CHECKING

from blip_core.export.formats import JPEG_QUALITY

if TYPE_CHECKING:
    from blip_core.export.card import Totals

_HUGGING_FACE = """\
from datasets import load_dataset

parts = load_dataset({folder})
"""
_WEBDATASET = """\
from pathlib import Path

import webdataset

tars = {{split: sorted(map(str, Path({folder}).glob(f"data/{{split}}-*.tar"))) for split in {splits}}}
parts = {{split: webdataset.WebDataset(urls, shardshuffle=False).decode("pil") for split, urls in tars.items()}}
"""
_COCO = """\
from pycocotools.coco import COCO

parts = {{split: COCO({folder} + f"/annotations/captions_{{split}}.json") for split in {splits}}}
"""
_SALESFORCE = """\
import json
from pathlib import Path

parts = {{split: json.loads(Path({folder}, f"annotation/{{split}}.json").read_bytes()) for split in {splits}}}
"""
_OPEN_CLIP = """\
import pandas

parts = {{split: pandas.read_csv({folder} + f"/{{split}}.csv", sep="\\t") for split in {splits}}}
"""
_LISTS = """\
import json
from pathlib import Path

parts = {{split: json.loads(Path({folder}, f"{{split}}.json").read_bytes()) for split in {splits}}}
"""
_FIFTYONE = """\
import fiftyone

dataset = fiftyone.Dataset.from_dir(dataset_dir={folder}, dataset_type=fiftyone.types.FiftyOneDataset)
"""
_WAYS = {
    "webdataset": {"datasets": _HUGGING_FACE, "webdataset": _WEBDATASET},
    "imagefolder": {"datasets": _HUGGING_FACE},
    "parquet": {"datasets": _HUGGING_FACE},
    "coco": {"pycocotools": _COCO},
    "salesforce": {"Python alone": _SALESFORCE},
    "open_clip": {"pandas": _OPEN_CLIP},
    "kohya": {"Python alone": _LISTS},
    "llava": {"Python alone": _LISTS},
    "label_studio": {"Python alone": _LISTS},
    "fiftyone": {"fiftyone": _FIFTYONE},
}
_PATHS = {
    "coco": "`file_name` is a path below `images/`.",
    "salesforce": "`image` is a path below `images/`, the `image_root` of BLIP's public code.",
    "open_clip": "In this folder: `python -m open_clip_train.main --dataset-type csv --train-data NAME.csv`.",
    "kohya": "In this folder: `--train_data_dir NAME --caption_extension .txt`; NAME.json has scores, origin and fields of each text.",
    "llava": "`--data_path NAME.json --image_folder images`.",
    "label_studio": "Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to this folder, add its `images` as local storage, take labelling.xml as the interface, "
    "and import NAME.json.",
}


def opening(totals: "Totals", name: str, form: str) -> list[str]:
    """How to get all parts; every block runs as it stands."""
    lines, values = [], {"folder": json.dumps(f"./{name}", ensure_ascii=False), "splits": json.dumps(sorted(totals.by_split))}
    for library, way in _WAYS[form].items():
        if library == "datasets" and form == "webdataset" and len(totals.kinds) > 1 and not totals.as_jpeg:
            lines += ["Hugging Face's datasets wants images of one kind in tars: `--images jpg` makes them.", ""]
        else:
            lines += [f"With {library}:", "", "```python", *way.format(**values).splitlines(), "```", ""]
    lines += [_PATHS[form], ""] if form in _PATHS else []
    if totals.encoded_anew:
        lines += [f"{totals.encoded_anew:,} of the images were PNG or WebP and are JPEG here, of quality {JPEG_QUALITY}.", ""]
    return ["## Open it", "", "From the folder that this one lies in, all parts at once:", "", *lines]
