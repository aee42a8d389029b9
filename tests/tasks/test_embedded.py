"""Pictures in Parquet tables, as the library datasets writes them: their pixels, their names, and those that can't be used."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from blip_core.config.tasks import ClassifyConfig
from blip_core.files.rejected import Rejected
from blip_core.tasks.captioned import read_captioned
from blip_core.tasks.classify import ClassifyTask
from blip_core.tasks.embedded import Embedded
from blip_core.tasks.frames import read_frames
from blip_core.tasks.pictures import Pictures, read_pixels
from blip_core.tasks.vqa import PICTURE, questions

JPEGS = [simplejpeg.encode_jpeg(np.full((32, 32, 3), 30 * i, np.uint8)) for i in range(8)]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path, rows, schema, **features):
    table = pa.Table.from_pylist(rows, schema=pa.schema(schema, {"huggingface": json.dumps({"info": {"features": features}})}))
    pq.write_table(table, path, row_group_size=3)


def shades(examples):
    return [round(read_pixels(e.pictures[0]).mean() / 30) for e in examples]


def test_classes_and_pictures_of_cifar_are_read_and_a_damaged_one_is_set_aside(tmp_path):
    rows = [{"img": {"bytes": data, "path": None}, "label": i % 2} for i, data in enumerate(JPEGS)]
    rows[4]["img"]["bytes"] = JPEGS[4][:100]
    rows[6]["img"] = {"bytes": None, "path": "own/six.jpg"}
    rows[7]["img"] = None
    (tmp_path / "own").mkdir()
    (tmp_path / "own/six.jpg").write_bytes(JPEGS[6])
    names = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    write(tmp_path / "test-00000-of-00001.parquet", rows, {"img": IMAGE, "label": pa.int64()}, label=names)
    found, aside = ClassifyTask().read(tmp_path, "test", ClassifyConfig(kind="classify"))
    assert shades(found) == [0, 1, 2, 3, 5, 6] and [e.labels[0] for e in found] == ["cat", "dog", "cat", "dog", "dog", "cat"]
    file = tmp_path / "test-00000-of-00001.parquet"
    assert str(found[4].pictures[0]) == f"{file}#5" and found[5].pictures == (tmp_path / "own/six.jpg",)
    assert sorted((a.where, a.reason) for a in aside) == [(f"{file}#4", "truncated"), (f"{file}:7", "bad_row")]


@pytest.mark.parametrize("kind", [IMAGE, pa.binary()])
def test_questions_about_pictures_in_the_table_are_read_whatever_its_other_columns_name(tmp_path, kind):
    rows = [
        {"image": {"bytes": data, "path": "a.jpg"} if kind == IMAGE else data, "image_id": 9, "question": f"Is it {i}?", "answers": ["yes"]}
        for i, data in enumerate(JPEGS)
    ]
    schema = {"image_id": pa.int64(), "question": pa.string(), "answers": pa.list_(pa.string()), "image": kind}
    write(tmp_path / "val.parquet", rows, schema)
    found, aside = questions(Pictures(tmp_path), tmp_path, "val", PICTURE)
    assert not aside and shades(found) == list(range(8)) and found[3].question == "Is it 3?" and found[3].people == ("yes",)


def test_captions_of_pictures_in_the_table_are_read(tmp_path):
    rows = [
        {"image": {"bytes": data, "path": None}, "filename": "1.jpg", "caption": ["a ball", f"ball {i}"]} for i, data in enumerate(JPEGS)
    ]
    write(tmp_path / "test.parquet", rows, {"image": IMAGE, "filename": pa.string(), "caption": pa.list_(pa.string())})
    found, aside = read_captioned(tmp_path, "test")
    assert not aside and shades(found) == list(range(8)) and found[7].texts == ("a ball", "ball 7") and found[7].id == "test.parquet#7"


def test_a_video_in_a_table_and_bytes_in_a_list_are_told_without_their_bytes(tmp_path):
    with pytest.raises(Rejected, match="write it to a file"):
        read_frames(Embedded(tmp_path / "test.parquet", 0, "video"), 2, lambda frame: frame)
    with pytest.raises(Rejected, match="write it to a file") as told:
        Pictures(tmp_path).find({"bytes": JPEGS[0], "path": None})
    assert len(str(told.value)) < 300
