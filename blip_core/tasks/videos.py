"""The videos of a task: which file a row means, the captions of MSR-VTT and MSVD, and what can't be decoded.

A video is a file, or a folder of pictures, its frames. A row names it by a path, a name with or without its ending, or the number at its
end. MSVD's youtube_mapping.txt gives names of YouTube other names, as vid1301; where there is one, a number is that of such a name.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from blip_core.compute.ahead import read_ahead
from blip_core.compute.pixels import resized
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import FILES, is_image_name
from blip_core.intake.walk import below
from blip_core.tasks.captioned import rows_of
from blip_core.tasks.embedded import Embedded
from blip_core.tasks.frames import read_frames
from blip_core.tasks.pictures import Pictures, keys_of, task_files
from blip_core.tasks.records import Row, row_files, split_of
from blip_core.tasks.task import E, SetAside

log = logging.getLogger(__name__)

VIDEO = ("video", "video_id", "clip_name", "video_name", "video_path", "vid", *FILES)
_ENDS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv", ".gif")
_CAPTIONS = re.compile(r"sents|captions|descriptions", re.IGNORECASE)  # in the name of a list of MSVD


class Videos(Pictures):
    """Every video below a folder, found by what a row says of it."""

    kind = "video"

    def named(self) -> Iterable[tuple[str, list[str]]]:
        names = task_files(self.folder).shown
        files = [name for name in names if name.lower().endswith(_ENDS)]
        folders = {str(PurePosixPath(name).parent) for name in names if is_image_name(name)} - {"."}
        others = _other_names(self.folder)
        for name in [*files, *sorted(folders)]:
            own = keys_of(name)
            if others:
                own = [key for key in own if not key.startswith("#")] + keys_of(others.get(PurePosixPath(name).stem, name))
            yield name, own


def video_pixels(path: Path | Embedded, frames: int, size: int) -> list[np.ndarray]:
    """Frames as the model sees them: uint8 size x size x 3 each."""
    return read_frames(path, frames, lambda frame: resized(frame, size)).pixels


def checked_videos(examples: list[E], aside: list[SetAside], frames: int) -> tuple[list[E], list[SetAside]]:
    """Without the examples whose videos' frames can't be decoded; each video is looked at once. Of the others, `video_frames` says how
    many frames the video has, and a warning how many videos have too few."""
    paths = list(dict.fromkeys(example.pictures[0] for example in examples))
    lengths = {path: found for [path], [found] in read_ahead(lambda p: _length(p, frames), ([p] for p in paths))}
    kept = []
    for example in examples:
        path = example.pictures[0]
        if isinstance(found := lengths[path], Rejected):
            aside.append(SetAside(str(path), found.reason, f"of example {example.id}: {found.detail}"))
        else:
            kept.append(replace(example, facts=example.facts | {"video_frames": found}))
    if short := Counter(n for n in lengths.values() if isinstance(n, int) and n < frames):
        said = ", ".join(f"{count} of {n}" for n, count in sorted(short.items()))
        log.warning("%d of %d videos have fewer than %d frames (%s): some stand there again", short.total(), len(paths), frames, said)
    return kept, aside


def caption_rows(folder: Path, split: str) -> tuple[list[tuple[str, Row]], list[SetAside]]:
    """Rows of a video with captions, with their places. A file whose name says the split goes before one that has a column for it: the
    1,000 pairs of MSRVTT_JSFusion_test.csv before what MSRVTT_data.json calls test. ValueError when no row is of the split."""
    if texts := [p for p in below(folder).paths(".txt") if _CAPTIONS.search(p.stem)]:
        return _rows_of_texts(folder, split, texts)
    files = row_files(folder)
    return rows_of(folder, split, {p: said for p, said in files.items() if said == split} or files)


def _length(path: Path | Embedded, frames: int) -> int | Rejected:
    try:
        return read_frames(path, frames, lambda frame: frame[:0]).length
    except Rejected as e:
        return e


def _rows_of_texts(folder: Path, split: str, texts: Sequence[Path]) -> tuple[list[tuple[str, Row]], list[SetAside]]:
    """MSVD's lists, a video and a caption a line: those whose name says the split, or of the others the videos that a list names."""
    named = [path for path in texts if split_of(path.relative_to(folder)) == split]
    listed = None if named else _listed_videos(folder, split)
    rows: list[tuple[str, Row]] = []
    aside = []
    for path in named or texts:
        for place, words in _lines(path):
            if len(words) < 2:
                aside.append(SetAside(place, "bad_row", f"expected a video and a caption, got {words[0][:100]!r}"))
            elif listed is None or words[0] in listed:
                rows.append((place, {"video": words[0], "caption": words[1]}))
    return rows, aside


def _listed_videos(folder: Path, split: str) -> set[str]:
    lists = [p for p in below(folder).paths(".txt") if not _CAPTIONS.search(p.stem) and split_of(p.relative_to(folder)) == split]
    if not lists:
        raise ValueError(
            f"{folder}: no list of captions whose name says {split}, nor {split}_list.txt with a video a line; expected either"
        )
    return {words[0] for path in lists for _, words in _lines(path)}


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Lines with their places, each cut behind its first word. Bytes that are no UTF-8 become lone surrogates, which no text may hold."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}:{number}", line.split(maxsplit=1)


def _other_names(folder: Path) -> dict[str, str]:
    """vid1301 by the name that YouTube's number and the seconds make."""
    files = [path for path in below(folder).paths(".txt") if "mapping" in path.stem.lower()]
    return {words[0]: words[1].strip() for path in files for _, words in _lines(path) if len(words) == 2}
