"""The tasks' files in a copy of the project."""

from blip_core.versions.task_files import kept_tasks, take_tasks


def test_a_linked_file_is_there_itself_and_what_a_commit_holds_is_left(tmp_path):
    root, copy = tmp_path / "root", tmp_path / "copy"
    for folder in (root / "tasks/vqa", root / "tasks/kept", root / "pictures", copy / "tasks"):
        folder.mkdir(parents=True)
    (root / "pictures/a.jpg").write_bytes(b"a picture")
    (root / "tasks/vqa/a.jpg").symlink_to("../../pictures/a.jpg")
    (root / "tasks/kept/test.csv").write_text("of now")
    (copy / "tasks/kept.dvc").write_text("outs: [{md5: 1a.dir, path: kept}]")
    take_tasks(copy, root)
    assert kept_tasks(copy) == {"tasks/kept": "1a.dir"}
    taken = copy / "tasks/vqa/a.jpg"
    assert taken.read_bytes() == b"a picture" and not taken.is_symlink() and not (copy / "tasks/kept").exists()
