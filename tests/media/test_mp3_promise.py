"""MP3 files whose header tells of other frames than there are."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import Kind, make_file
from sequential import decoded

from vatt import MediaError, probe, read_waveform
from vatt.media.decode_whole import decode_whole

KINDS: dict[str, dict[str, Any]] = {
    "steady.mp3": {"sample_rate": 44_100},
    "mono.mp3": {"sample_rate": 22_050, "layout": "mono"},
    "bare.mp3": {"sample_rate": 48_000, "file_options": (("write_xing", "0"),)},
    "bare_mono.mp3": {
        "sample_rate": 32_000,
        "layout": "mono",
        "file_options": (("write_xing", "0"),),
    },
}
WITH_HEADER = ("steady.mp3", "mono.mp3")


@pytest.fixture(params=KINDS)
def path(request: Any, tmp_path: Path) -> Path:
    """An MP3 of eight seconds."""
    kind = Kind(video=None, audio="libmp3lame", audio_seconds=8.0, **KINDS[request.param])
    make_file(tmp_path / request.param, kind)
    return tmp_path / request.param


def with_promise(content: bytes, factor: float) -> bytes:
    """The file with another number of frames in its Xing or Info header."""
    place = max(content.find(b"Info"), content.find(b"Xing")) + 8
    (number,) = struct.unpack(">I", content[place : place + 4])
    return content[:place] + struct.pack(">I", round(number * factor)) + content[place + 4 :]


def clip_at(source: Any, start_seconds: float, seconds: float = 0.3) -> tuple[np.ndarray, float]:
    clip, coverage = read_waveform(
        source,
        start_seconds=start_seconds,
        num_samples=round(seconds * 16_000),
        sample_rate=16_000,
    )
    return clip.numpy(), coverage


def test_a_file_that_was_cut_is_as_long_as_what_is_there(path: Path) -> None:
    content = path.read_bytes()
    cut = content[: len(content) * 5 // 8]
    assert probe(cut).duration_seconds == pytest.approx(5.0, abs=0.15)
    for start in (0.0, 2.2, 4.4):
        np.testing.assert_array_equal(clip_at(cut, start)[0], clip_at(content, start)[0])
    assert 0.1 < clip_at(cut, 4.7, seconds=1.0)[1] < 0.5
    with pytest.raises(MediaError, match="ends (at .* s, )?before 6.00 s"):
        clip_at(cut, 6.0)
    if path.name in WITH_HEADER:
        with pytest.raises(MediaError, match=r"is incomplete: it says it ends at [78]\.\d\d"):
            decode_whole(cut)
    else:
        decode_whole(cut)


@pytest.mark.parametrize("factor", [0.5, 2.0, 10.0])
def test_a_number_of_frames_that_is_wrong_moves_nothing(path: Path, factor: float) -> None:
    content = path.read_bytes()
    if path.name not in WITH_HEADER:
        pytest.skip("has no header")
    wrong = with_promise(content, factor)
    assert probe(wrong).duration_seconds == pytest.approx(8.0, abs=0.15)
    for start in (0.0, 2.2, 4.4, 7.5):
        np.testing.assert_allclose(clip_at(wrong, start)[0], clip_at(content, start)[0], atol=1e-4)
    with pytest.raises(MediaError, match="ends (at .* s, )?before 9.00 s"):
        clip_at(wrong, 9.0)
    if factor > 1:
        with pytest.raises(MediaError, match="is incomplete: it says it ends at"):
            decode_whole(wrong)
    else:
        decode_whole(wrong)


def tag(size: int) -> bytes:
    """An ID3 tag, as large as one with a picture."""
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + digits + np.random.default_rng(0).bytes(size)


@pytest.mark.parametrize("between", [b"", tag(500), tag(90_000), b"TAG".ljust(128, b"x")])
def test_files_that_were_joined_are_as_long_as_both(path: Path, between: bytes) -> None:
    content = path.read_bytes()
    decode_whole(content)
    joined = path.with_name("joined.mp3")
    joined.write_bytes(content + between + content)
    decode_whole(joined)
    samples, rate, _ = decoded(joined)
    assert probe(joined).duration_seconds == pytest.approx(len(samples) / rate, abs=1.0)
    for start in (1.0, 5.0, 9.5, 14.0):
        assert clip_at(joined, start)[1] == 1.0
    assert clip_at(joined, 7.5, seconds=1.0)[1] > 0.4  # FFmpeg gives a tag the time of its frames
