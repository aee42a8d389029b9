"""The verbs caption, match and search: files, folders and lists in, rows out, and what can't be read is a row with its reason."""

import csv
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

import blip_core
from blip_core.cli.main import main
from blip_core.weights.checkpoint import new_model, save_model
from tests.capfilt.test_plugins import clip_folder

NAMES = ["a.png", "b.JPG", "deep/c.webp"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, model_cfg, tokenizer) -> str:
    path = tmp_path_factory.mktemp("models") / "g1"
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, path, prompt="", max_tokens=12)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three pictures in the folder `pics`, one below another; beside them a file that is none and one that is broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics/deep").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pics" / name)
    (tmp_path / "pics/notes.md").write_text("x")
    return tmp_path


@pytest.fixture
def ask(model, capsys):
    """Exit code, the rows as JSON, and what stands on stderr."""

    def run(*words: str, model: str = model) -> tuple[int, list[dict], str]:
        code = main([*words, "--model", model, "--format", "jsonl"])
        said = capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err

    return run


def test_captions_of_files_folders_and_a_list(folder, ask, model, monkeypatch, caplog):
    with caplog.at_level("INFO", "blip_core"):
        code, rows, _ = ask("caption", "pics", "pics/a.png")
    assert code == 0 and [row["picture"] for row in rows] == [f"pics/{name}" for name in NAMES]
    assert "1 files that are named like no picture" in caplog.text
    paths = [row["picture"] for row in rows]
    assert [[row["caption"]] for row in rows] == blip_core.load(model).captions(paths)
    monkeypatch.setattr("sys.stdin", io.StringIO("pics/deep\n\npics/a.png\n"))
    assert [row["picture"] for row in ask("caption", "-")[1]] == ["pics/deep/c.webp", "pics/a.png"]
    _, drawn, _ = ask("caption", "pics/a.png", "--sampler", "nucleus", "--count", "3", "--seed", "5")
    [expected] = blip_core.load(model).captions(["pics/a.png"], sampler="nucleus", num_candidates=3, seed=5)
    assert [row["caption"] for row in drawn] == expected
    assert len(ask("caption", "pics/a.png", "--count", "5")[1]) == 5  # a wider search than three beams


def test_a_bad_picture_is_a_row_with_its_reason_and_the_rest_go_on(folder, ask):
    (folder / "pics/broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, rows, said = ask("caption", "pics", "gone.png")
    faults = {row["picture"]: row["fault"] for row in rows if "fault" in row}
    assert code == 1 and set(faults) == {"pics/broken.jpg", "gone.png"} and len(rows) == 5
    assert "no such file" in faults["gone.png"] and all(row["caption"] for row in rows if "fault" not in row)
    assert said.splitlines()[-1] == "caption: 2 of 5 pictures could not be read; their rows say why"
    for verb in ("match", "search"):
        code, rows, _ = ask(verb, "pics", "a red ball")
        assert code == 1 and [row["picture"] for row in rows if "fault" in row] == ["pics/broken.jpg"] and len(rows) == 4


def test_a_match_of_every_text_with_every_picture(folder, ask, model):
    code, rows, _ = ask("match", "pics", "a red ball", "blue star")
    assert code == 0 and [(row["picture"], row["text"]) for row in rows[:3]] == [
        ("pics/a.png", "a red ball"),
        ("pics/a.png", "blue star"),
        ("pics/b.JPG", "a red ball"),
    ]
    expected = blip_core.load(model).match("pics/b.JPG", ["a red ball", "blue star"])
    assert [row["itm"] for row in rows[2:4]] == pytest.approx(expected.itm, abs=2e-3)
    assert [row["itc"] for row in rows[2:4]] == pytest.approx(expected.itc, abs=2e-3)


def test_a_search_shows_the_best_first_and_keeps_what_it_saw(folder, ask, monkeypatch):
    _, scored, _ = ask("match", "pics", "a red ball")
    code, rows, said = ask("search", "pics", "a red ball", "blue star", "--count", "2")
    logit = {row["picture"]: np.log(row["itm"] / (1 - row["itm"])) + row["itc"] for row in scored}
    assert code == 0 and [row["picture"] for row in rows[:2]] == sorted(logit, key=logit.get, reverse=True)[:2]
    assert [row["text"] for row in rows] == ["a red ball"] * 2 + ["blue star"] * 2 and "3/3" in said
    (folder / "pics/new.png").write_bytes((folder / "pics/a.png").read_bytes())
    _, found, said = ask("search", "pics", "a red ball", "--count", "9")
    assert "1/1" in said and {row["picture"] for row in found} == {f"pics/{name}" for name in (*NAMES, "new.png")}


def test_a_clip_matches_and_searches_by_its_cosine(folder, ask, tokenizer):
    clip = str(clip_folder("CLIP", folder / "clip", tokenizer))
    _, rows, _ = ask("search", "pics", "a red ball", model=clip)
    assert len(rows) == 3 and all(set(row) == {"picture", "text", "itc"} for row in rows)
    assert [row["itc"] for row in rows] == sorted((row["itc"] for row in rows), reverse=True)
    code, _, said = ask("caption", "pics", model=clip)
    assert code == 1 and "can't write captions" in said


def test_rows_go_to_a_file_by_its_ending(folder, model, capsys):
    assert main(["caption", "pics/a.png", "gone,too.png", "--model", model, "--out", "made/captions.csv"]) == 1
    with (folder / "made/captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == ["pics/a.png", "gone,too.png"]
    assert rows[0]["caption"] and not rows[0]["fault"] and "no such file" in rows[1]["fault"]
    capsys.readouterr()
    assert main(["match", "pics/a.png", "a red ball", "--model", model, "--out", "rows.txt"]) == 1
    assert "ends in .csv or .jsonl" in capsys.readouterr().err and not (folder / "rows.txt").exists()
    assert main(["match", "pics/a.png", "a\nball", "--model", model]) == 0
    assert capsys.readouterr().out.startswith("pics/a.png\ta?ball\titm 0.")


def test_a_file_name_that_is_no_utf8_costs_no_row(folder, model, monkeypatch):
    """Linux takes any bytes for a name; JSON has the very name, and CSV and the screen something to read."""
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "pics/a.png").rename(folder / name)
    for form in ("csv", "jsonl"):
        assert main(["caption", name, "--model", model, "--out", f"rows.{form}"]) == 0
        screen = io.TextIOWrapper(io.BytesIO(), "utf-8")
        monkeypatch.setattr("sys.stdout", screen)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9.png\n"), "utf-8"))
        assert main(["caption", "-", "--model", model, "--format", form]) == 0
        assert screen.buffer.getvalue() == (folder / f"rows.{form}").read_bytes()
    assert json.loads((folder / "rows.jsonl").read_text())["picture"] == name
    assert "\ncaf\\udce9.png," in (folder / "rows.csv").read_text()


def test_what_can_not_be_asked_is_told(folder, capsys):
    assert main(["caption", "pics/a.png"]) == 1
    assert "Name a folder, a .pth file or a registered version with --model" in capsys.readouterr().err
    assert main(["caption", "pics/a.png", "--model", "nowhere"]) == 1 and "nowhere: no such folder" in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert main(["search", "empty", "a ball", "--model", "x"]) == 1
    assert "empty: no picture among its 0 files" in capsys.readouterr().err
