"""Rows as people's tools write them: each is read for what it says, and none is lost or taken for another in silence."""

import json

import numpy as np
import pytest
import simplejpeg

from blip_core.files.rejected import Rejected
from blip_core.tasks.pictures import Pictures
from blip_core.tasks.vqa import PICTURE, questions

JPEG = simplejpeg.encode_jpeg(np.full((20, 30, 3), 90, np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name in ("cats/1.jpg", "dogs/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(JPEG)
    return tmp_path


def read(folder):
    return questions(Pictures(folder), folder, "test", PICTURE)


def row(**changes):
    return {"image": "cats/1.jpg", "question": "What?", "answer": "red", **changes}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffImage,Question,Answer\r\nC:\\pets\\cats\\1.jpg,What?,red\r\n",
        "image,question,direct_answers\ncats/1.jpg,What?,\"['red', 'red']\"\n",
        "image,question,answers\ncats/1.jpg,What?,\"[{'answer': 'red', 'answer_id': 1}]\"\n",
    ],
)
def test_a_csv_is_read_as_its_writer_writes(folder, text):
    (folder / "test.csv").write_text(text, newline="")
    [found], aside = read(folder)
    assert not aside and found.answers == (("red", 1.0),) and found.pictures == (folder / "cats/1.jpg",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_is_read_in_any_encoding_that_says_so_and_as_lines_of_one_row(folder, encoding):
    (folder / "test.json").write_text(json.dumps(row()), encoding=encoding)
    assert len(read(folder)[0]) == 1


def test_two_files_that_count_their_questions_from_1_are_not_joined(folder):
    for name, question in (("vqa_test", "What?"), ("vg_test", "Where?")):
        (folder / f"{name}.json").write_text(json.dumps([row(question=question, question_id=1)]))
    assert {e.question for e in read(folder)[0]} == {"What?", "Where?"}


def test_a_question_whose_answers_are_all_empty_is_set_aside(folder):
    (folder / "test.json").write_text(json.dumps([row(answer=" "), row(answer=None, answers=[{"answer": ""}] * 10)]))
    found, aside = read(folder)
    assert not found and [a.reason for a in aside] == ["bad_row"] * 2


def test_a_picture_is_sought_in_the_folder_that_the_row_names(folder):
    pictures = Pictures(folder)
    assert pictures.find("/home/x/cats/1.png") == pictures.find("pets/1.jpg") == folder / "cats/1.jpg"
    with pytest.raises(Rejected, match="dogs/1.jpg"):
        pictures.find("dogs/1.jpg")  # cats has another one of this name
    (folder / "dogs/1.jpg").write_bytes(JPEG)
    assert Pictures(folder).find("all/dogs/1.jpg") == folder / "dogs/1.jpg"


def test_what_systems_leave_behind_is_no_picture(folder):
    (folder / "__MACOSX/cats").mkdir(parents=True)
    (folder / "__MACOSX/cats/._1.jpg").write_bytes(b"no picture")
    assert Pictures(folder).find(1) == folder / "cats/1.jpg"


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="gone: no such folder"):
        read(tmp_path / "gone")
