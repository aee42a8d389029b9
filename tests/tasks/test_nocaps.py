"""NoCaps, as it is published."""

from blip_core.tasks.records import split_files


def test_its_list_of_val_is_what_is_measured_beside_what_is_learned(tmp_path):
    for name in ("nocaps_val_4500_captions.json", "captions_train2014.json", "captions_val2014.json"):
        (tmp_path / name).touch()
    assert [p.name for p in split_files(tmp_path, "test")] == ["nocaps_val_4500_captions.json"]
    assert [p.name for p in split_files(tmp_path, "train")] == ["captions_train2014.json"]
