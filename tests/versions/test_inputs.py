"""Tasks' files and frozen models in a copy of the project."""

import pytest

from blip_core.versions.inputs import kept_inputs, take_unkept


@pytest.mark.parametrize("name", ["tasks", "frozen"])
def test_a_linked_file_is_there_itself_and_what_a_commit_holds_is_left(tmp_path, name):
    root, copy = tmp_path / "root", tmp_path / "copy"
    for folder in (root / f"{name}/vqa", root / f"{name}/kept", root / "pictures", copy / name):
        folder.mkdir(parents=True)
    (root / "pictures/a.jpg").write_bytes(b"a picture")
    (root / f"{name}/vqa/a.jpg").symlink_to("../../pictures/a.jpg")
    (root / f"{name}/kept/test.csv").write_text("of now")
    (copy / f"{name}/kept.dvc").write_text("outs: [{md5: 1a.dir, path: kept}]")
    take_unkept(copy, root)
    assert kept_inputs(copy) == {f"{name}/kept": "1a.dir"}
    taken = copy / f"{name}/vqa/a.jpg"
    assert taken.read_bytes() == b"a picture" and not taken.is_symlink() and not (copy / f"{name}/kept").exists()
