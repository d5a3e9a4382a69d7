"""Files that were joined end to end: their clock starts over, and no seek finds a clip in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import Kind, make_file
from sequential import decoded, pictures

from vatt import MediaError, probe, read_frames, read_waveform
from vatt.config.options import Reencoding
from vatt.media.decode_whole import decode_whole
from vatt.media.reencode import reencode
from vatt.packing.build import build_shards
from vatt.packing.check import check_shards

JUMPS = r"its clock starts over or leaps after [2-4]\.\d\d s, as in files that were joined"
OLD = Kind(video="mpeg2video", audio="mp2", gop=10)
FILMS = {
    "broadcast.ts": OLD,
    "stream.ts": Kind(),
    "camera.m2ts": Kind(audio="ac3"),
    "disc.mpg": OLD,
    "disc.vob": Kind(video="mpeg2video", audio="ac3", gop=10),
    "web.flv": Kind(video="flv", audio="libmp3lame", sample_rate=44_100),
    "web264.flv": Kind(),
}
SOUNDS = {
    "radio.ogg": Kind(video=None, audio="libopus"),
    "radio.oga": Kind(video=None, audio="flac"),
    "song.flac": Kind(video=None, audio="flac"),
    "sound.ts": Kind(video=None, audio="mp2"),
}


SHORT = ("broadcast.ts", "radio.ogg", "song.flac")  # in the default run


def names(*of: str) -> list[Any]:
    """Names to test, most of them in the slow run only."""
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in of]


def joined(folder: Path, name: str, kind: Kind, *later_seconds: float) -> Path:
    """A file of three seconds, and further ones that begin at these times of their clocks."""
    content = b""
    for place, start in enumerate((0.0, *later_seconds)):
        part = folder / f"part{place}-{name}"
        make_file(part, Kind(**{**vars(kind), "start_seconds": start}))
        skip = 13 if place and name.endswith(".flv") else 0  # a recorder writes no second header
        content += part.read_bytes()[skip:]
        part.unlink()
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("later", [(0.0,), (0.0, 0.0), (50_000.0,)])
@pytest.mark.parametrize("name", names(*FILMS, *SOUNDS))
def test_a_clock_that_starts_over_is_told(
    name: str, later: tuple[float, ...], tmp_path: Path
) -> None:
    if later[0] and not name.endswith((".ts", ".flv")):
        pytest.skip("the muxer writes no late start")
    path = joined(tmp_path, name, {**FILMS, **SOUNDS}[name], *later)
    for read in (probe, decode_whole):
        with pytest.raises(MediaError, match=JUMPS):
            read(path)


@pytest.mark.parametrize("name", names(*FILMS))
def test_films_that_were_joined_are_encoded_in_their_order(name: str, tmp_path: Path) -> None:
    path = joined(tmp_path, name, FILMS[name], 0.0)
    target = tmp_path / "fast.mp4"
    assert reencode(path, target, Reencoding(short_side=72))
    assert probe(target).duration_seconds == pytest.approx(6.0, abs=0.25)
    truth = [picture for _, picture in pictures(path)]
    found = pictures(target)
    assert len(found) == pytest.approx(len(truth), abs=2)
    times = np.array([time for time, _ in found])
    assert np.diff(times).min() > 0.02
    assert np.diff(times).max() < 0.3
    for share in (0.1, 0.4, 0.6, 0.9):
        place = round(share * len(found))
        near = truth[max(0, place - 2) : place + 3]
        assert min(np.abs(found[place][1].astype(int) - one).mean() for one in near) < 12
    sound, rate, _ = decoded(target)
    assert len(sound) / rate == pytest.approx(6.0, abs=0.3)
    for start in (0.5, 2.0, 3.5, 5.0):
        clip, coverage = read_waveform(
            target, start_seconds=start, num_samples=8_000, sample_rate=16_000
        )
        assert coverage == 1.0
        assert np.sqrt(np.mean(clip.numpy() ** 2)) > 0.1


def test_reports_name_files_that_were_joined(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    joined(media, "broadcast.ts", OLD, 0.0)
    make_file(media / "whole.ts", OLD)
    report = build_shards(media, tmp_path / "all", check_media=False, show_progress=False)
    assert report.num_samples == 2
    (fault,) = check_shards(tmp_path / "all", show_progress=False).faults
    assert "starts over" in fault.fault
    report = build_shards(media, tmp_path / "good", show_progress=False)
    assert [fault.where for fault in report.faults] == ["broadcast.ts"]
    report = build_shards(
        media,
        tmp_path / "fast",
        reencoding=Reencoding(short_side=72),
        show_progress=False,
    )
    assert (report.num_samples, report.faults) == (2, [])
    assert not check_shards(tmp_path / "fast", show_progress=False).faults


def test_a_clip_that_meets_the_place_is_refused(tmp_path: Path) -> None:
    path = joined(tmp_path, "stream.ts", FILMS["stream.ts"], 0.0)
    content = path.read_bytes()
    with pytest.raises(MediaError, match=JUMPS):
        read_frames(content, start_seconds=0.0, num_frames=40, frame_rate=10, short_side=16)


@pytest.mark.parametrize("name", names("broadcast.ts", "web.flv"))
def test_a_pause_is_no_jump(name: str, tmp_path: Path) -> None:
    path = joined(tmp_path, name, FILMS[name], 8.0)
    assert probe(path).duration_seconds == pytest.approx(11.0, abs=0.2)
    for start in (1.0, 8.5):
        _, coverage = read_frames(
            path, start_seconds=start, num_frames=4, frame_rate=10, short_side=16
        )
        assert coverage == 1.0


@pytest.mark.parametrize("name", names(*FILMS, *SOUNDS))
def test_a_file_that_is_whole_is_none(name: str, tmp_path: Path) -> None:
    path = joined(tmp_path, name, {**FILMS, **SOUNDS}[name])
    assert probe(path).duration_seconds == pytest.approx(3.0, abs=0.2)
    decode_whole(path)
