"""Frames of a video: which are taken, from every kind of file, and what is damaged."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg

from blip_core.files.rejected import Rejected
from blip_core.tasks.frames import midpoints, read_frames

BITS, BLOCK = 14, 8  # a frame shows its number in blocks of black and white


def write_video(path: Path, numbers, codec: str, **options: str) -> None:
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width = stream.height = 4 * BLOCK
        for number in numbers:
            bits = np.array([number >> b & 1 for b in range(16)], np.uint8).reshape(4, 4)
            pixels = np.repeat((bits * 255).repeat(BLOCK, 0).repeat(BLOCK, 1)[:, :, None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def number_of(pixels: np.ndarray) -> int:
    lit = pixels[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK, 0].ravel() > 127
    return sum(1 << b for b in range(BITS) if lit[b])


def taken(path: Path, count: int) -> list[int]:
    return [number_of(pixels) for pixels in read_frames(path, count, lambda p: p).pixels]


def test_the_middle_of_equal_parts():
    assert midpoints(300, 8) == [18, 56, 93, 131, 168, 206, 243, 281]
    assert midpoints(3, 8) == [0, 0, 0, 1, 1, 2, 2, 2] and midpoints(1, 4) == [0] * 4 and midpoints(10_000, 1) == [5000]


# a B-frame pyramid in short open groups; times of milliseconds and no number of frames; times of decoding alone; no times at all
KINDS = {
    "a.mp4": ("libx264", {"bf": "3", "x264-params": "keyint=7:open-gop=1"}),
    "b.webm": ("libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
    "c.avi": ("libx264", {"bf": "2", "g": "9"}),
    "d.h264": ("libx264", {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_they_are_exact_in_every_kind_of_file(name, tmp_path):
    codec, options = KINDS[name]
    write_video(tmp_path / name, range(97), codec, **options)
    assert taken(tmp_path / name, 8) == midpoints(97, 8)
    assert taken(tmp_path / name, 120) == midpoints(97, 120)


def test_a_playlist_that_calls_itself_a_video_opens_no_other_file(tmp_path):
    write_video(tmp_path / "other.ts", range(30), "libx264")
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile other.ts\n")
    with pytest.raises(Rejected, match="corrupt"):
        read_frames(tmp_path / "a.mp4", 4, lambda p: p)


def test_ten_thousand_frames_are_sought_and_few_kept(tmp_path):
    write_video(tmp_path / "long.mp4", range(10_000), "mpeg4", g="250")
    kept = []
    found = read_frames(tmp_path / "long.mp4", 8, lambda p: kept.append(number_of(p)) or p[:0])
    assert found.length == 10_000 and kept == midpoints(10_000, 8)


def test_a_folder_is_a_video_its_pictures_in_the_order_of_their_numbers(tmp_path):
    for number in (1, 2, 10, 9):
        (tmp_path / f"f{number}.jpg").write_bytes(simplejpeg.encode_jpeg(np.full((8, 8, 3), 20 * number, np.uint8)))
    found = read_frames(tmp_path, 4, lambda p: p)
    assert found.length == 4 and [round(p.mean() / 20) for p in found.pixels] == [1, 2, 9, 10]


def test_a_frame_is_turned_as_a_player_turns_it(tmp_path):
    """A telephone held upright: the matrix of its track turns the picture to the right."""
    path = tmp_path / "turned.mp4"
    write_video(path, [1, 1, 1], "libx264")  # only the block at the upper left is lit
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert taken(path, 1) == [1 << 3]  # the upper right


def test_what_can_not_be_decoded_is_told(tmp_path):
    def reason(name: str) -> str:
        with pytest.raises(Rejected) as e:
            read_frames(tmp_path / name, 8, lambda p: p)
        return f"{e.value.reason}: {e.value.detail}"

    rng = np.random.default_rng(0)
    write_video(tmp_path / "good.mp4", rng.integers(0, 1 << BITS, 200), "libx264", g="20")
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 3 // 5])
    (tmp_path / "hurt.mp4").write_bytes(data[: len(data) // 2] + bytes(len(data) // 3) + data[len(data) * 5 // 6 :])
    (tmp_path / "none.mp4").write_bytes(b"no video at all")
    (tmp_path / "empty").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux([*stream.encode(sound), *stream.encode()])
    with av.open(str(tmp_path / "nothing.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 32
        container.start_encoding()

    assert len(taken(tmp_path / "good.mp4", 8)) == 8
    assert reason("cut.mp4").startswith("truncated: 6.7 seconds are announced, the file ends after")
    assert reason("hurt.mp4").startswith("corrupt: ")
    assert reason("none.mp4") == "corrupt: no video, or a damaged one: Invalid data found when processing input"
    assert reason("sound.mp4") == "not_an_image: no moving picture in it, but audio"
    assert reason("nothing.avi") == "not_an_image: a video without a frame"
    assert reason("empty").startswith("not_an_image: a folder without a picture")
