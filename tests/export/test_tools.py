"""Lists for other tools, read as these read them: every text with its image, scores, origin and the source's fields."""

import json
from collections import defaultdict
from pathlib import Path

import pandas
import pyarrow as pa
import pytest

from blip_core.export.data import export
from blip_core.export.formats import COLUMNS, Item
from blip_core.export.tools import WRITERS, OpenClipWriter
from blip_core.tables.captions import KEPT, caption_table, read_table, table_paths, write_table
from blip_core.tables.manifest import write_manifest
from tests.export.test_export import INGESTED
from tests.stages.test_ingest import SPLITS, run
from tests.support.archives import jpeg, karpathy_image, write_img2dataset, write_karpathy

KEYS = [f"00000{i:04d}" for i in range(4)]
TEXTS = ["null", 'a "red"\tsign, 100%', "a <image> of 水", "7"]


@pytest.fixture(scope="module")
def generation(tmp_path_factory) -> Path:
    """Four pictures, each with a web text that needs care and a synthetic one; of the first the web text was dropped."""
    root = tmp_path_factory.mktemp("tools")
    write_img2dataset(root / "data/web", "00000", KEYS)
    write_karpathy(root / "data/clean", [karpathy_image(f"n{i}", i, split) for i, split in enumerate(SPLITS)])
    run(root / "data", root / "artifacts")
    for path in (root / "artifacts/g0").glob("web-*.parquet"):
        rows = [row for number, web in enumerate(read_table(path).to_pylist()) for row in judged(number, web)]
        write_table(caption_table(rows), root / "artifacts/generations/g1" / path.name)
    write_manifest(root / "artifacts/generations/g1")
    return root / "artifacts/generations/g1"


def judged(number: int, row: dict) -> list[dict]:
    web = {**row, "text": TEXTS[number], "itm": 0.5, "match": 0.25, "filter": "f" * 16, "reason": "loop" if number == 0 else KEPT}
    made = {**web, "text": f"made for {number}", "source": "synthetic", "round": "r1", "model": "c" * 16, "match": 0.75, "reason": KEPT}
    return [web, made]


@pytest.fixture(scope="module")
def expected(generation) -> dict[str, list[tuple[str, str]]]:
    """Text and source by key."""
    found = defaultdict(list)
    for path in table_paths(generation):
        for row in read_table(path).to_pylist():
            found[row["key"]].append((row["text"], row["source"]))
    return dict(found)


def exported(generation: Path, folder: Path, form: str) -> Path:
    export(generation, folder / "out", form=form, everything=True)
    return folder / "out"


def same_picture(path: Path, key: str) -> bool:
    return path.read_bytes() == jpeg(key.partition("-")[2])


def test_open_clip(generation, expected, tmp_path):
    """As CsvDataset of open_clip_train/data.py: read_csv with tabs, then str() of what stands in the column, stripped by the tokenizer."""
    folder = exported(generation, tmp_path, "open_clip")
    table = pandas.read_csv(folder / "web.csv", sep="\t")
    found = defaultdict(list)
    for row in table.to_dict("records"):
        assert same_picture(folder / row["filepath"], row["key"]) and row["match"] in (0.25, 0.75) and row["url"]
        found[row["key"]].append((str(row["title"]).strip(), row["source"]))
    assert found == expected


def test_a_field_of_the_source_gives_way_and_may_come_late(tmp_path):
    """`stars` stands in no row before the second."""
    text = dict.fromkeys(COLUMNS) | {"text": "a fish", "reason": KEPT}
    items = [
        Item(key, key, jpeg(KEYS[0]), 40, 36, [text], fields) for key, fields in (("a", {"title": "x"}), ("b", {"title": "y", "stars": 3}))
    ]
    with OpenClipWriter(tmp_path, {"title": pa.string(), "stars": pa.int64()}) as writer:
        writer.write("web", "web-00000", iter(items))
    rows = pandas.read_csv(tmp_path / "web.csv", sep="\t")
    assert list(rows["title"]) == ["a fish"] * 2 and list(rows["source_title"]) == ["x", "y"] and rows["stars"].fillna(0).tolist() == [0, 3]


def test_kohya(generation, expected, tmp_path):
    """The first line is what is trained on by default: a text that was kept."""
    folder = exported(generation, tmp_path, "kohya")
    [place] = (folder / "web").iterdir()
    assert place.name == "1_web-00000" and {p.suffix for p in place.iterdir()} == {".jpg", ".txt"}
    for key, texts in expected.items():
        lines = (place / f"{key}.txt").read_text(encoding="utf-8").splitlines()
        assert sorted(lines) == sorted(text for text, _ in texts) and same_picture(place / f"{key}.jpg", key)
    assert (place / "web-000000000.txt").read_text().splitlines()[0] == "made for 0"
    rows = json.loads((folder / "web.json").read_text())
    assert {(row["key"], row["text"], row["source"]) for row in rows} == {(k, *text) for k, texts in expected.items() for text in texts}
    assert all((folder / row["image"]).exists() and row["url"] for row in rows)


def test_llava(generation, expected, tmp_path):
    folder = exported(generation, tmp_path, "llava")
    entries, found = json.loads((folder / "web.json").read_text()), defaultdict(list)
    assert len({entry["id"] for entry in entries}) == len(entries) == 8
    for entry in entries:
        human, gpt = entry["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt") and human["value"].startswith("<image>\n")
        assert json.dumps(entry["conversations"]).count("<image>") == 1, "LLaVA gives each a picture"
        assert same_picture(folder / "images" / entry["image"], entry["key"]) and entry["url"]
        found[entry["key"]].append((gpt["value"].replace("a image of", "a <image> of"), entry["source"]))
    assert found == expected


def test_label_studio(generation, expected, tmp_path):
    """By its guides on tasks and predictions: names of the interface, a textarea's value, a score where there is one."""
    folder = exported(generation, tmp_path, "label_studio")
    interface = (folder / "labelling.xml").read_text()
    for task in json.loads((folder / "web.json").read_text()):
        data, found = task["data"], []
        assert same_picture(folder / data["image"].removeprefix("/data/local-files/?d="), data["key"]) and data["url"]
        for prediction, candidate in zip(task["predictions"], json.loads(data["candidates"]), strict=True):
            [result] = prediction["result"]
            assert (
                f'<Image name="{result["to_name"]}" value="$image"/>' in interface
                and f'<TextArea name="{result["from_name"]}"' in interface
            )
            assert result["type"] == "textarea" and prediction["score"] == candidate["match"]
            found.append((*result["value"]["text"], candidate["source"]))
        assert found == expected[data["key"]]


def test_fiftyone(generation, expected, tmp_path):
    """As its importer reads a folder without metadata.json: samples, each with a path below the folder."""
    folder = exported(generation, tmp_path, "fiftyone")
    assert not (folder / "metadata.json").exists()
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    for sample in samples:
        assert same_picture(folder / sample["filepath"], sample["key"]) and sample["tags"] == ["web"] and sample["url"]
        assert sample["captions"] == [text for text, _ in expected[sample["key"]]] and None not in sample.values()
    assert samples[0]["caption"] == "made for 0" and samples[0]["match"] == 0.75


@pytest.mark.parametrize("form", sorted(WRITERS.keys() - {*INGESTED, "fiftyone"}))
def test_the_lines_of_the_card_open_it(generation, tmp_path, monkeypatch, form):
    folder = exported(generation, tmp_path, form)
    monkeypatch.chdir(tmp_path)
    block = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    space: dict = {}
    exec(block, space)
    assert len(space["parts"]["web"]) == (4 if form == "label_studio" else 8)
