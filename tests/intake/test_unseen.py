"""Files behind links under DVC, which tracks a link as a link: noted so that it sees their changes, or refused with the way to do it."""

import os
import subprocess

import pytest

from blip_core.intake.sources import write_listings
from blip_core.intake.unseen import note_unseen, require_noted
from tests.stages.test_ingest import CFG, data  # noqa: F401


def test_real_folders_need_no_note(data):  # noqa: F811
    (data / "web/again").symlink_to(data / "clean")  # to what DVC sees already
    assert note_unseen(data, CFG) == [
        f"ingest.{part}: {part} lies in the data folder, where DVC sees its files; nothing to note" for part in ("web", "clean")
    ]
    assert not list(data.glob("*.json")) and write_listings(data, CFG) == []
    require_noted(data, CFG)


@pytest.mark.parametrize("place", ["clean", "web/more", "web/00000.tar"])
def test_what_lies_behind_a_link_is_noted_again_whenever_it_changes(data, tmp_path, place):  # noqa: F811
    target = tmp_path / "elsewhere"
    if (data / place).exists():
        os.rename(data / place, target)
    else:
        target.mkdir()
        (target / "x.tar").write_bytes(b"")
    (data / place).symlink_to(target)
    part = place.partition("/")[0]
    told = rf"ingest.{part}: .*is a link, so DVC does not see.*{part}.files.json is missing.*`blip list`.*import-url"
    with pytest.raises(ValueError, match=told):
        require_noted(data, CFG)
    (line,) = (line for line in note_unseen(data, CFG) if not line.endswith("nothing to note"))
    assert f"{part}.files.json" in line and "`dvc add data` notes it" in line
    require_noted(data, CFG)
    before = (data / f"{part}.files.json").read_bytes()
    assert "as before" in "".join(note_unseen(data, CFG)) and (data / f"{part}.files.json").read_bytes() == before
    changed = next(p for p in (target.rglob("*") if target.is_dir() else [target]) if p.is_file())
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(ValueError, match="is not that of the files as they are now"):
        require_noted(data, CFG)
    note_unseen(data, CFG)
    assert (data / f"{part}.files.json").read_bytes() != before


def test_a_part_outside_the_data_folder_is_noted_too(data, tmp_path):  # noqa: F811
    os.rename(data / "web", tmp_path / "web")
    cfg = CFG.model_copy(update={"web": f"file://{tmp_path}/web"})
    with pytest.raises(ValueError, match="ingest.web: .*lies outside the data folder"):
        require_noted(data, cfg)
    note_unseen(data, cfg)
    require_noted(data, cfg)


def test_a_data_folder_that_is_a_link_is_refused_with_the_way_round(data, tmp_path):  # noqa: F811
    (tmp_path / "linked").symlink_to(data)
    with pytest.raises(ValueError, match="linked is a link, which DVC can't add: make it a folder, and link what lies in it"):
        require_noted(tmp_path / "linked", CFG)


def test_dvc_is_told_and_the_verb_alone_reads_on(data, tmp_path):  # noqa: F811
    """What DVC does not run it need not see."""
    os.rename(data / "clean", tmp_path / "clean")
    (data / "clean").symlink_to(tmp_path / "clean")
    outs = {
        name: str(tmp_path / "out" / name) for name in ("shards", "generation", "heldout", "metadata", "vocab", "quarantine", "metrics")
    }
    flags = [word for name, path in outs.items() for word in (f"--out-{name}", path)]
    command = ["python", "-m", "blip_core", "stage", "ingest", "--data", str(data), *flags, "--work", str(tmp_path / "work")]
    told = subprocess.run(command, env={**os.environ, "DVC_STAGE": "ingest"}, capture_output=True, text=True)
    assert told.returncode == 1 and "clean is a link" in told.stderr
    alone = subprocess.run(command, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "DVC_STAGE"})
    assert "is a link" not in alone.stderr
