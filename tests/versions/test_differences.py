"""What changed between two versions, against a plain Python comparison of all rows."""

import random
from pathlib import Path

import pytest

from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.manifest import write_manifest
from blip_core.versions.differences import differences

REASONS = ("kept", "kept", "below_threshold", "duplicate")


def rows(seed: int, num: int = 200) -> list[dict]:
    """Texts of each source and many images; a seed changes decisions, texts and which candidates there are."""
    draw = random.Random(seed)
    found = []
    for n in range(num):
        key = f"web-{n:04}"
        for source, candidates in (("web", 1), ("human", n % 2), ("synthetic", draw.randrange(3)), ("fused", draw.randrange(2))):
            for candidate in range(candidates):
                text = f"{source} {n} {candidate} {draw.randrange(2) if source != 'human' else ''}"
                reason = "kept" if source == "human" else draw.choice(REASONS)
                row = {"key": key, "image_id": key, "text": text, "source": source, "candidate": candidate, "reason": reason}
                found.append(row | {"round": "r1" if source in ("synthetic", "fused") else ""})
    draw.shuffle(found)
    return found


def write(folder: Path, texts: list[dict], *, shards: int) -> dict[str, Path]:
    """Tables by shard; which image lies in which depends on their number."""
    for shard in range(shards):
        own = [row for row in texts if int(row["key"][4:]) % shards == shard]
        write_table(caption_table(own), folder / f"web-{shard:05}.parquet")
    write_manifest(folder)
    return {path.name: path for path in folder.iterdir()}


def plainly(before: list[dict], after: list[dict]) -> dict[str, dict[str, int]]:
    old, new = ({(r["key"], r["source"], r["candidate"]): r for r in texts if r["reason"] == "kept"} for texts in (before, after))
    counts = {}
    for source in ("web", "human", "synthetic", "fused"):
        a, b = ({k for k in texts if k[1] == source} for texts in (old, new))
        same = {k for k in a & b if old[k]["text"] == new[k]["text"]}
        counts[source] = {"before": len(a), "after": len(b), "added": len(b - a), "dropped": len(a - b)}
        counts[source] |= {"changed": len(a & b) - len(same), "unchanged": len(same)}
    return counts


@pytest.mark.parametrize("shards", [(3, 3), (3, 5), (1, 4)])
def test_the_same_counts_as_a_plain_comparison_however_the_images_are_sharded(tmp_path, shards):
    first, second = rows(1), [row for row in rows(2) if row["key"] != "web-0007"]
    found = differences(write(tmp_path / "a", first, shards=shards[0]), write(tmp_path / "b", second, shards=shards[1]), examples=3)
    assert found["sources"] == plainly(first, second)
    assert sum(row["texts"] for row in found["decisions"] if row["before"] != "absent") == len(first)
    assert sum(row["texts"] for row in found["decisions"] if row["after"] != "absent") == len(second)
    assert all(len(texts) == 3 for texts in found["examples"].values()) and found["other_picture"] == 0


def test_examples_are_always_the_same_and_show_what_happened(tmp_path):
    first, second = rows(1), rows(2)
    few = differences(write(tmp_path / "a", first, shards=2), write(tmp_path / "b", second, shards=2), examples=2)["examples"]
    more = differences(write(tmp_path / "c", first, shards=5), write(tmp_path / "d", second, shards=5), examples=9)["examples"]
    for kind, texts in few.items():
        assert texts == more[kind][:2]
        for row in more[kind]:
            kept = row["reason_before"] == "kept", row["reason_after"] == "kept"
            assert kept == {"added": (False, True), "dropped": (True, False), "changed": (True, True)}[kind]
            assert kind != "changed" or row["text_before"] != row["text_after"]


def test_a_version_differs_from_itself_in_nothing(tmp_path):
    files = write(tmp_path / "a", rows(1), shards=2)
    found = differences(files, files, examples=5)
    assert all(counts[kind] == 0 for counts in found["sources"].values() for kind in ("added", "dropped", "changed"))
    assert not any(found["examples"].values())


def test_a_key_that_names_another_picture_is_told(tmp_path):
    """Data that was ingested anew may give a key to another image; then the texts have nothing to do with each other."""
    first = rows(1)
    second = [row | {"image_id": "other"} if row["key"] == "web-0003" else row for row in first]
    assert differences(write(tmp_path / "a", first, shards=2), write(tmp_path / "b", second, shards=2), examples=0)["other_picture"] == 1
