"""The contract of caption tables: each fault is named with file, row and key, whichever folder it stands in."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from blip_core.__main__ import main
from blip_core.checks.contract import check_folder
from blip_core.tables.captions import caption_table
from tests.stages.test_assemble import row, seal
from tests.stages.test_gate import write_shards

WEB = [row(f"web-{i}", f"text {i}", "web", 0.5, reason="kept") for i in range(4)]
SYNTHETIC = [row(f"web-{i}", f"a made text {i}", "synthetic", 0.5, reason="below_threshold") for i in range(4)]
HUMAN = [row("train-0", f"text {i}", "human", candidate=i, reason="kept") for i in range(2)]


def generation(root: Path, *, at: int = 2, **changes) -> Path:
    """g1 of two tables in `root`/artifacts; the web row `at` is changed."""
    web = [dict(r) for r in WEB]
    web[at] |= changes
    folder = seal(root / "artifacts/generations/g1", {"web-00000": web + SYNTHETIC, "train-00000": HUMAN}, limits={"max_chars": 20})
    write_shards(root / "artifacts/shards", {"web": [f"web-{i}" for i in range(4)], "train": ["train-0"]})
    return folder


def failures(folder: Path) -> dict[str, str]:
    """What is said of each failed check."""
    with pytest.raises(ValueError) as e:
        check_folder(folder)
    return dict(re.findall(r"^  (\w+): (.*)$", str(e.value), re.M))


def test_a_folder_that_keeps_it(tmp_path, capsys):
    folder = generation(tmp_path)
    assert re.fullmatch(r".*g1: 10 texts in 2 tables keep the contract \(\d+ checks\)", check_folder(folder))
    assert main(["contract", str(folder), "--params", str(Path(__file__).parents[2] / "params.yaml")]) == 0
    assert "keep the contract" in capsys.readouterr().out


FAULTS = {
    "text_known": {"text": None},
    "text_form_web": {"text": " two  spaces"},
    "text_length_web": {"text": "x" * 21},
    "image_id_form": {"image_id": " x"},
    "key_form": {"key": "web/2"},
    "source": {"source": "robot"},
    "reason": {"reason": "because"},
    "candidate_range": {"candidate": -1},
    "match_range": {"match": 1.01},
    "itm_range": {"itm": -0.01},
    "itc_range": {"itc": 1.5},
    "texts_without_image": {"key": "web-9"},
}
MISSING = {
    "key_form": "key",
    "image_id_form": "image_id",
    "text_known": "text",
    "source": "source",
    "round_known": "round",
    "candidate_range": "candidate",
    "reason": "reason",
    "match_range": "match",
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_with_its_place(tmp_path, name):
    found = failures(generation(tmp_path, **FAULTS[name]))
    key = FAULTS[name].get("key", "web-2")
    assert found[name].startswith("1, expected 0 rows (") and found[name].endswith(f"in web-00000.parquet, row 2, key {key})")


@pytest.mark.parametrize("name", MISSING)
def test_a_value_that_is_missing_is_told_once(tmp_path, name):
    column = MISSING[name]
    found = failures(generation(tmp_path, **{column: None}))
    assert set(found) == {name} and found[name].startswith("1, expected 0 rows (")
    assert found[name].endswith(f"in web-00000.parquet, row 2, key {'None' if column == 'key' else 'web-2'})")


def test_rows_that_must_be_unique(tmp_path):
    found = failures(generation(tmp_path, key="web-1", image_id="id-web-1"))
    assert found["key_source_candidate"].startswith("2, expected 0 rows") and "'key': 'web-1'" in found["key_source_candidate"]


def test_human_texts_are_kept_and_the_empty_synthetic_one_is_no_fault(tmp_path):
    folder = generation(tmp_path, text="x")
    seal(folder, {"train-00000": [HUMAN[0] | {"reason": "loop"}], "web-00000": [SYNTHETIC[0] | {"text": "", "reason": "empty"}]})
    assert set(failures(folder)) == {"reason_human"}


def test_undecided_rows_are_for_captions_and_scores(tmp_path):
    folder = generation(tmp_path, reason="")
    assert set(failures(folder)) == {"reason"}
    scores = seal(tmp_path / "artifacts/rounds/r1/scores", {"web-00000": [r | {"reason": ""} for r in WEB + SYNTHETIC]})
    assert "8 texts in 1 tables" in check_folder(scores)
    fresh = [r | {"reason": "", "match": None, "itm": None, "itc": None, "filter": ""} for r in SYNTHETIC]
    assert "4 texts in 1 tables" in check_folder(seal(tmp_path / "artifacts/rounds/r1/captions", {"web-00000": fresh}))


def test_tables_off_the_schema_or_altered_and_shards_that_are_not_there(tmp_path):
    folder = generation(tmp_path)
    path = folder / "web-00000.parquet"
    table = caption_table(WEB)
    seal(folder, {"web-00000": table.set_column(table.schema.get_field_index("itm"), "itm", pa.nulls(4, pa.float32()))})
    assert "column itm is float, expected double" in failures(folder)["contract"]
    folder = generation(tmp_path)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    assert "web-00000.parquet: altered since the manifest was written" in failures(folder)["contract"]
    with pytest.raises(ValueError, match="no shards beside it; name them with --shards"):
        check_folder(seal(tmp_path / "elsewhere", {"web-00000": WEB}))


def test_planted_pairs_have_columns_of_their_own_and_are_altered_as_others(tmp_path):
    generation(tmp_path)
    planted = pa.table({"key": ["val-0"], "truth": [True]})
    scores = seal(tmp_path / "artifacts/rounds/r1/scores", {"web-00000": [r | {"reason": ""} for r in WEB], "controls": planted})
    assert "4 texts in 1 tables" in check_folder(scores)
    data = bytearray((scores / "controls.parquet").read_bytes())
    data[20] ^= 1
    (scores / "controls.parquet").write_bytes(data)
    assert "controls.parquet: altered since the manifest was written" in failures(scores)["contract"]


def test_a_table_without_its_shard(tmp_path):
    folder = generation(tmp_path)
    write_shards(tmp_path / "artifacts/shards", {"train": ["train-0"]})
    (tmp_path / "artifacts/shards/web-00000.index.parquet").unlink()
    (tmp_path / "artifacts/shards/web-00000.tar").unlink()
    write_shards(tmp_path / "artifacts/shards", {})
    assert failures(folder)["texts_without_image"].startswith("8, expected 0 rows")
