"""Frames of a video, a file or a folder of pictures: that in the middle of each of so many equal parts, by number.

In mp4, mov, mkv and webm a reading of the packets tells how many frames there are, whatever the header says, and only what lies between
a wanted frame and the keyframe before it is decoded: damage elsewhere does no harm. Other files are decoded twice, to count and to take.
What is held in memory are the frames that are wanted, as `keep` leaves them.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import is_image_name
from blip_core.intake.walk import is_hidden
from blip_core.pictures.images import check_size
from blip_core.tasks.embedded import Embedded
from blip_core.tasks.pictures import LIMITS, read_pixels

# playlists (HLS, ffconcat, SDP) are none of these: they make FFmpeg open other files and addresses
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v"
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # as FFmpeg calls them; avi has times of decoding alone
_WHOLE = 0.9  # of the announced time; a file with less of it was cut off

Keep = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Frames:
    """`pixels`: as many as were asked for, uint8 H x W x 3; where the video has fewer, some stand there again. `length`: of the
    video, in frames."""

    pixels: list[np.ndarray]
    length: int


def midpoints(length: int, count: int) -> list[int]:
    """The frame in the middle of each of `count` equal parts of a video of `length` frames."""
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def read_frames(path: Path | Embedded, count: int, keep: Keep) -> Frames:
    """`keep` makes of each frame what stays in memory. Rejected when one that is wanted can't be decoded. ValueError without PyAV."""
    if isinstance(path, Embedded):
        raise Rejected("not_an_image", "a video that stands in the table itself is not read; write it to a file, and name that")
    return _of_folder(path, count, keep) if path.is_dir() else _of_file(path, count, keep)


def _of_folder(path: Path, count: int, keep: Keep) -> Frames:
    files = sorted((p for p in path.iterdir() if is_image_name(p.name) and not is_hidden(p.name)), key=lambda p: _natural(p.name))
    if not files:
        raise Rejected("not_an_image", "a folder without a picture, where the frames of a video are expected")
    places = midpoints(len(files), count)
    pixels = {place: keep(read_pixels(files[place])) for place in dict.fromkeys(places)}
    return Frames([pixels[place] for place in places], len(files))


def _natural(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _of_file(path: Path, count: int, keep: Keep) -> Frames:
    av = _pyav()
    try:
        stamps, keys = _stamps(av, path)
        length = len(stamps) if keys else sum(1 for _ in _decoded(av, path))
        if not length:
            raise Rejected("not_an_image", "a video without a frame")
        places = midpoints(length, count)
        wanted = sorted(set(places))
        found = _sought(av, path, [stamps[p] for p in wanted], keys) if keys else _counted(av, path, wanted)
        pixels = {place: keep(_upright(frame)) for place, frame in zip(wanted, found, strict=False)}
    except (av.FFmpegError, MemoryError) as e:
        raise Rejected("corrupt", f"no video, or a damaged one: {getattr(e, 'strerror', None) or e}") from None
    if missing := [place for place in wanted if place not in pixels]:
        raise Rejected("truncated", f"its {length} frames end before frame {missing[0]}")
    return Frames([pixels[place] for place in places], length)


def _pyav() -> ModuleType:
    try:
        import av
    except ModuleNotFoundError:
        raise ValueError(
            "videos need PyAV, which is not installed; pip install 'blip-bootstrap[video]', or bring each video as a folder of pictures"
        ) from None
    return av


def _opened(av: ModuleType, path: Path) -> Any:
    """A file of strangers: it is told by its content, and leads to no other."""
    return av.open(str(path), options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"})


def _stream(container: Any) -> Any:
    """The video itself: a cover of it may stand there as another."""
    if (found := container.streams.best("video")) is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise Rejected("not_an_image", f"no moving picture in it, but {kinds}")
    if found.width:  # before a decoder makes room for frames of such a size; each frame is looked at again
        check_size(found.width, found.height, LIMITS)
    return found


def _stamps(av: ModuleType, path: Path) -> tuple[list[int], list[int]]:
    """Times of all frames and of the keyframes among them, rising; both empty where the file must be decoded to know them."""
    stamps, keys, end = [], [], 0.0
    with _opened(av, path) as container:
        stream = _stream(container)
        for packet in container.demux():
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is stream:
                stamps.append(packet.pts)
                keys += [packet.pts] * packet.is_keyframe
        seconds = (container.duration or 0) / av.time_base
        if end - (container.start_time or 0) / av.time_base < _WHOLE * seconds:
            raise Rejected("truncated", f"{seconds:.1f} seconds are announced, the file ends after {end:.1f}")
        exact = container.format.name in _INDEXED and None not in stamps
    return (sorted(stamps), sorted(keys)) if exact else ([], [])


def _decoded(av: ModuleType, path: Path) -> Iterator[Any]:
    with _opened(av, path) as container:
        yield from _sound(container.decode(_stream(container)))


def _counted(av: ModuleType, path: Path, wanted: list[int]) -> Iterator[Any]:
    places = set(wanted)
    for place, frame in enumerate(_decoded(av, path)):
        if place in places:
            yield frame
        if place == wanted[-1]:
            return


def _sought(av: ModuleType, path: Path, stamps: list[int], keys: list[int]) -> Iterator[Any]:
    """The frames of these times, rising. What the decoder leaves out has the frame behind it."""
    with _opened(av, path) as container:
        stream = _stream(container)
        frame: Any = None
        for stamp in stamps:
            key = keys[max(0, bisect_right(keys, stamp) - 1)]
            if frame is None or key > frame.pts:
                container.seek(key, stream=stream)
                frames, frame = _sound(container.decode(stream)), None
            while frame is None or frame.pts is None or frame.pts < stamp:
                if (frame := next(frames, None)) is None:
                    return
            yield frame


def _sound(frames: Iterable[Any]) -> Iterator[Any]:
    """Rejected at a frame that the decoder itself calls damaged: those up to the next keyframe are made of it."""
    for frame in frames:
        if frame.is_corrupt:
            raise Rejected("corrupt", f"the frame at {float(frame.time or 0):.2f} seconds is damaged")
        check_size(frame.width, frame.height, LIMITS)
        yield frame


def _upright(frame: Any) -> np.ndarray:
    """As a player shows it: turned as the file says."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
