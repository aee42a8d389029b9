"""Exported data sets: what others read is what our own readers read, and what the generation says."""

import json
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from blip_core.__main__ import main
from blip_core.export.data import export
from blip_core.files.content import sha256_file, write_json
from blip_core.intake.formats import recognise
from blip_core.tables.captions import KEPT, caption_table, read_tables, table_paths, write_table
from blip_core.tables.manifest import read_manifest, write_manifest
from tests.stages.test_ingest import SPLITS, run
from tests.support.archives import jpeg, karpathy_image, read_all, write_img2dataset, write_karpathy

INGESTED = ("webdataset", "imagefolder", "parquet", "coco", "salesforce")  # forms that our own readers read too
CAPTIONER, FILTER = "c" * 16, "f" * 16


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """g0 of a small crawl, and g1: of every web image's texts one is kept, both, or none. Texts need care in JSON, CSV and YAML."""
    root = tmp_path_factory.mktemp("export")
    for shard in range(2):
        write_img2dataset(root / "data/web", f"{shard:05d}", [f"{shard:05d}{i:04d}" for i in range(9)])
    write_karpathy(root / "data/clean", [karpathy_image(f"n{i}", i, split) for i, split in enumerate(SPLITS)])
    run(root / "data", root / "artifacts")
    a = root / "artifacts"
    (a / "generations").mkdir()
    (a / "g0").rename(a / "generations/g0")
    for path in table_paths(a / "generations/g0"):
        rows = [r for row in read_tables_rows(path) for r in grown(row)]
        write_table(caption_table(rows), a / "generations/g1" / path.name)
    write_manifest(a / "generations/g1")
    noise = {"noise_web": 0.4321, "residual_noise_web_upper": 0.2, "judged_texts_synthetic": 40, "judged_noise_synthetic_upper": 0.1}
    write_json({**noise, "coverage": 0.75, "checks": 3}, a / "metrics/gate-r1.json")
    write_json({"noise_web": 0.9999}, a / "metrics/gate-r2.json")
    return a


def read_tables_rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def grown(row: dict) -> list[dict]:
    """A web text and a synthetic one for its image, with the fate that the image's number says."""
    if row["source"] == "human":
        return [row]
    number = int(row["key"][-1]) % 4
    scores = {"itm": 0.5, "itc": 0.25, "match": 0.125 * number, "filter": FILTER}
    web = {**row, **scores, "text": f'{row["text"]}, "水", a\\b: #', "reason": KEPT if number in (1, 2) else "below_threshold"}
    made = {**web, "source": "synthetic", "text": f"made for {row['key']}", "round": "r1"}
    made |= {"model": CAPTIONER, "sampler": "nucleus", "seed": 7}
    web |= {"file_name": False, "language": "zh"}
    return [web, made | {"reason": KEPT if number in (2, 3) else "loop"}]


def texts_by_key(generation: Path, *, everything: bool) -> dict[str, set[str]]:
    texts = defaultdict(set)
    for row in read_tables(generation).to_pylist():
        if everything or row["reason"] == KEPT:
            texts[row["key"]].add(row["text"])
    return dict(texts)


def read_back(folder: Path) -> dict[str, set[str]]:
    """Every record's texts by the key of its picture, as our own readers find them."""
    records, rejected = read_all(folder)
    assert not rejected and len({r.key for r in records}) == len(records)
    keys = {jpeg(f"{s:05d}{i:04d}"): f"web-{s:05d}{i:04d}" for s in range(2) for i in range(9)}
    keys |= {jpeg(f"n{i}"): f"{'train' if split == 'restval' else split}-n{i}" for i, split in enumerate(SPLITS)}
    for record in records:
        part = keys[record.image].partition("-")[0]
        assert record.split == part or (part == "web" and record.split in (None, "train"))
    return {keys[r.image]: set(r.texts) for r in records}


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("form", INGESTED)
def test_read_back(artifacts, tmp_path, form, everything):
    generation = artifacts / "generations/g1"
    manifest = export(generation, tmp_path / "out", form=form, everything=everything)
    expected = texts_by_key(generation, everything=everything)
    assert recognise(tmp_path / "out").__name__.endswith(form)
    assert read_back(tmp_path / "out") == expected
    web = [r.fields.values for r in read_all(tmp_path / "out")[0] if r.fields.values.get("source_key")]
    assert {f"web-{told['source_key']}" for told in web} == {key for key in expected if key.startswith("web")}
    assert {told["url"] for told in web} == {"http://a.example/1.jpg"} and manifest["fields"]["url"] == len(web)
    assert manifest["images"] == len(expected) and sum(manifest["texts"].values()) == sum(map(len, expected.values()))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    listed = read_manifest(tmp_path / "out")["files"]
    assert all(sha256_file(tmp_path / "out" / name) == facts["sha256"] for name, facts in listed.items())
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".jpg"} == {
        *listed,
        "manifest.json",
    }


@pytest.mark.parametrize("form", INGESTED)
def test_heldout_tables_keep_their_splits(artifacts, tmp_path, form):
    export(artifacts / "heldout", tmp_path / "out", form=form)
    assert read_back(tmp_path / "out") == texts_by_key(artifacts / "heldout", everything=False)


def test_scores_and_provenance_go_along(artifacts, tmp_path):
    generation = artifacts / "generations/g1"
    for form in ("parquet", "salesforce", "webdataset", "coco", "imagefolder"):
        export(generation, tmp_path / form, form=form, everything=True)
    row = next(r for p in sorted((tmp_path / "parquet/data").glob("*.parquet")) for r in read_tables_rows(p) if r["key"] == "web-000000003")
    assert row["text"] == "made for web-000000003"  # the one that was kept
    assert row["caption_source"] == ["web", "synthetic"] and row["caption_reason"] == ["below_threshold", KEPT]
    assert row["caption_match"] == [0.375, 0.375] and row["caption_model"] == ["", CAPTIONER] and row["caption_seed"] == [None, 7]
    assert row["caption_file_name"] == [False, None] and row["caption_language"] == ["zh", ""]
    assert row["image"]["bytes"] == jpeg("000000003") and (row["width"], row["height"]) == (40, 36)
    entries = json.loads((tmp_path / "salesforce/annotation/web.json").read_text())
    (entry,) = [e for e in entries if e["caption"] == "made for web-000000003"]
    assert (entry["image"], entry["reason"], entry["filter"]) == ("web-00000/web-000000003.jpg", KEPT, FILTER)
    value = json.loads((tmp_path / "coco/annotations/captions_web.json").read_text())
    assert len({n["id"] for n in value["annotations"]}) == len(value["annotations"]) == 36
    assert value["annotations"][1]["source"] == "synthetic"
    rows = read_tables_rows(tmp_path / "imagefolder/train-web/metadata.parquet")
    assert len(rows) == 18 and rows[3]["caption_itc"] == [0.25, 0.25]


def test_the_schema_tells_hugging_face_of_the_image(artifacts, tmp_path):
    export(artifacts / "generations/g1", tmp_path / "out", form="parquet")
    schema = pq.read_schema(next((tmp_path / "out/data").glob("web-*")))
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and set(features) == set(schema.names)
    assert features["url"] == {"dtype": "string", "_type": "Value"} and schema.field("imgid").type == "int64"


def test_the_card(artifacts, tmp_path):
    export(artifacts / "generations/g1", tmp_path / "my-set", form="parquet", licence="cc-by-4.0")
    text = (tmp_path / "my-set/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["configs"][0]["data_files"] == [{"split": s, "path": f"data/{s}-*.parquet"} for s in ("train", "web")]
    expected = texts_by_key(artifacts / "generations/g1", everything=False)
    num_web = sum(k.startswith("web") for k in expected)
    for line in (
        "# my-set",
        "| train | 8 | human | 16 |",
        f"| web | {num_web} | synthetic | 8 |",
        f"| web | {num_web} | web | 8 |",
        "| kept | 32 |",
        "| below_threshold | 10 |",
        "| gate-r1 | web texts that the filter rejected (the paper's noise ratio) | 0.4321 |",
        "gate-r1 went by planted pairs for the bound on the kept web texts.",
        "gate-r1 went by people's labels for the bound on the kept synthetic texts.",
        f"- captioner `{CAPTIONER}`",
        f"- filter `{FILTER}`",
        "`cc-by-4.0`.",
        f"| url | `string` | {num_web} |",
        "| imgid | `int64` | 8 |",
    ):
        assert line in text.splitlines() or line in text, line
    assert "0.9999" not in text  # of another round


def test_the_card_of_a_set_that_nobody_judged(artifacts, tmp_path):
    export(artifacts / "generations/g0", tmp_path / "out", form="coco")
    text = (tmp_path / "out/README.md").read_text()
    assert "## Noise" not in text and "## Models" not in text and "Nobody has stated one" in text


def test_the_same_generation_gives_the_same_bytes_and_replaces_an_earlier_export(artifacts, tmp_path):
    first = export(artifacts / "generations/g1", tmp_path / "out", form="webdataset")
    (tmp_path / "out/stale.tar").write_bytes(b"x")
    next((tmp_path / "out/data").glob("web-00000-*")).unlink()
    assert export(artifacts / "generations/g1", tmp_path / "out", form="webdataset") == first
    assert not (tmp_path / "out/stale.tar").exists()
    second = export(artifacts / "generations/g1", tmp_path / "out", form="coco")
    assert second["export"] == "coco" and not list((tmp_path / "out").rglob("*.tar"))


def test_faults_leave_nothing(artifacts, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.jpg").write_bytes(b"x")
    generation = str(artifacts / "generations/g1")
    assert main(["export", generation, "--format", "coco", "--out", str(tmp_path / "photos")]) == 1
    assert "photos: exists and is no earlier export" in capsys.readouterr().err
    assert main(["export", generation, "--format", "tfrecord", "--out", str(tmp_path / "out")]) == 1
    assert "--format tfrecord: expected one of webdataset, " in capsys.readouterr().err
    assert main(["export", str(tmp_path / "g9"), "--format", "coco", "--out", str(tmp_path / "out")]) == 1
    assert main(["export", generation, "--format", "coco", "--out", str(tmp_path / "out"), "--shards", str(tmp_path)]) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


def test_the_verb(artifacts, tmp_path, capsys):
    arguments = ["export", str(artifacts / "generations/g1"), "--format", "imagefolder", "--out", str(tmp_path / "out"), "--license", "mit"]
    assert main(arguments) == 0
    assert f"{tmp_path / 'out'}: " in capsys.readouterr().out
    assert main([*arguments, "--all", "--images", "jpg"]) == 0
    assert read_manifest(tmp_path / "out")["everything"] and "license: mit\n" in (tmp_path / "out/README.md").read_text()


def test_an_export_can_be_ingested_again(artifacts, tmp_path):
    """A generation as the crawl of another project, held-out captions in Parquet and another crawl's as its clean set."""
    export(artifacts / "generations/g1", tmp_path / "data/web", form="webdataset")
    export(artifacts / "generations/g0", tmp_path / "data/clean/more", form="parquet")
    export(artifacts / "heldout", tmp_path / "data/clean/held", form="parquet")
    metrics = run(tmp_path / "data", tmp_path, max_rejected=1.0)
    assert metrics["images_val"] + metrics["images_test"] + metrics["images_train"] == 8 + 18 + 8
    assert metrics["images_val"] >= 5 and metrics["images_test"] >= 3
    assert metrics["rejected_leaks_heldout"] > 0  # pictures of the crawl that were dealt into the held-out parts
