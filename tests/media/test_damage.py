"""Damaged media: a clip is whole, or there is one clear error; nothing leaks."""

import contextlib
import gc
import io
import os
import pickle
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import av
import av.logging
import pytest
import torch
from bench_fuzz import mutated
from corpus import made_once
from media_files import (
    KINDS,
    SMALL_AUDIO,
    SMALL_VIDEO,
    Kind,
    gif,
    jpeg,
    make_file,
    make_folder,
    make_still,
    png,
)

from vatt.errors import MediaError
from vatt.media.clip import probe, read_clip, read_frames, read_waveform
from vatt.media.source import FileRange


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "media", make_folder)


def test_a_truncated_file_gives_what_is_whole_and_refuses_the_rest(
    media: Path, tmp_path: Path
) -> None:
    for name in ("faststart.mp4", "long_gop.mkv", "vp9.webm"):
        content = (media / name).read_bytes()
        request: dict[str, Any] = {"num_frames": 4, "frame_rate": 10.0, "short_side": 32}
        whole, _ = read_frames(content, start_seconds=0, **request)
        part = content[: len(content) * 6 // 10]
        assert torch.equal(read_frames(part, start_seconds=0, **request)[0], whole), name
        with pytest.raises(MediaError):
            read_frames(part, start_seconds=2.4, **request)


def test_a_recording_that_begins_amid_a_stream_is_heard_from_its_first_whole_packets(
    media: Path,
) -> None:
    content = (media / "mpeg2.mpg").read_bytes()
    for share in (0.3, 0.4, 0.5):
        waveform, coverage = read_waveform(
            content[int(share * len(content)) :],
            start_seconds=0.1,
            num_samples=8_000,
            sample_rate=16_000,
        )
        assert coverage == 1
        assert waveform.abs().max() > 0.3


def test_damage_in_the_pictures_refuses_the_clip_and_spares_others(media: Path) -> None:
    content = bytearray((media / "plain.mp4").read_bytes())
    with av.open(str(media / "plain.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size and p.pts is not None]
    damaged = next(p for p in packets if p.is_keyframe and float(p.pts * p.time_base) > 1.8)
    noise = random.Random(0)
    for place in range(damaged.pos + 100, damaged.pos + damaged.size, 7):
        content[place] = noise.randrange(256)
    request: dict[str, Any] = {"num_frames": 4, "frame_rate": 10.0, "short_side": 32}
    read_frames(bytes(content), start_seconds=0.5, **request)
    with pytest.raises(MediaError, match="video is damaged at [12].[0-9]+ s"):
        read_frames(bytes(content), start_seconds=2.0, **request)


def test_packets_that_are_lost_from_a_matroska_file_refuse_the_clip_and_spare_others(
    media: Path,
) -> None:
    whole = (media / "vp9.webm").read_bytes()
    with av.open(str(media / "vp9.webm")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    request: dict[str, Any] = {"num_frames": 4, "frame_rate": 10.0, "short_side": 32}
    log_before = (av.logging.get_level(), av.logging.get_skip_repeated())
    for damaged_seconds, start_seconds, spared_seconds in ((2.0, 1.9, 0.5), (0.04, 0.0, 1.5)):
        place = next(p.pos for p in packets if float(p.pts * p.time_base) >= damaged_seconds)
        content = whole[: place - 8] + bytes(16) + whole[place + 8 :]
        read_frames(content, start_seconds=spared_seconds, **request)
        with pytest.raises(MediaError, match=r"is damaged \(.*EBML.*\): copy or encode"):
            read_frames(content, start_seconds=start_seconds, **request)
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == log_before


def test_pictures_that_would_fill_the_memory_are_refused(media: Path, tmp_path: Path) -> None:
    make_still(tmp_path / "narrow.png", "png", width=16_000, height=2)
    request: dict[str, Any] = {"start_seconds": 0.0, "frame_rate": 1e5, "short_side": 224}
    with pytest.raises(MediaError, match=r"narrow.png: would become 1 pictures of 1792000×224"):
        read_frames(tmp_path / "narrow.png", num_frames=1, **request)
    with pytest.raises(MediaError, match=r"plain.mp4: would become 100000 pictures of 298×224"):
        read_frames(media / "plain.mp4", num_frames=100_000, **request)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bomb.png", png(100_000, 100_000)),
        ("wide.png", png(100_000, 1)),
        ("bomb.gif", gif(65_535, 65_535)),
        ("wide.gif", gif(65_535, 1)),
        ("bomb.jpg", jpeg(65_500, 65_500)),
    ],
)
def test_a_picture_that_claims_too_many_pixels_is_refused_by_name(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (
        lambda path: probe(path),
        lambda path: read_clip(path, start_seconds=0, video=SMALL_VIDEO, audio=None),
    ):
        with pytest.raises(MediaError, match=f"{name}: .*134217728") as caught:
            read(tmp_path / name)
        assert "pixels" in caught.value.reason


def test_the_pictures_that_claim_sizes_are_right_but_for_these(tmp_path: Path) -> None:
    for name, content in (("a.gif", gif(4, 4)), ("a.jpg", jpeg(8, 8))):
        (tmp_path / name).write_bytes(content)
        clip = read_clip(tmp_path / name, start_seconds=0, video=SMALL_VIDEO, audio=None)
        assert clip.video is not None


def test_pictures_with_a_named_colour_profile_do_not_end_the_process(tmp_path: Path) -> None:
    profile = (b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(3000)))
    (tmp_path / "named.png").write_bytes(png(8, 8, profile, rows=200))
    script = """if True:
        import gc, sys
        from vatt.media.clip import probe, read_frames
        for _ in range(20):
            assert probe(sys.argv[1]).width == 8
            read_frames(sys.argv[1], start_seconds=0, num_frames=1, frame_rate=1, short_side=8)
            gc.collect()
    """
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "named.png")])
    assert run.returncode == 0


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
def test_a_picture_whose_metadata_would_fill_the_memory_is_refused_by_name(
    kind: bytes, tmp_path: Path
) -> None:
    def picture(megabytes: int, count: int) -> bytes:
        chunk = kind, b"name\0\0" + zlib.compress(bytes(megabytes << 20), 9)
        return png(8, 8, *[chunk] * count, rows=200)

    path, message = tmp_path / "a.png", r"metadata unpack to more than 16777216 bytes: strip them"
    request: dict[str, Any] = {"start_seconds": 0, "video": SMALL_VIDEO, "audio": None}
    for content in (picture(17, 1), picture(2, 9), png(8, 8, rows=200) + picture(17, 1)):
        path.write_bytes(content)
        window = FileRange(str(path), 0, len(content))
        for source in (path, content, window, io.BytesIO(content)):
            for read in (probe, lambda source: read_clip(source, **request)):
                with pytest.raises(MediaError, match=message):
                    read(source)
    path.write_bytes(picture(1, 2))
    assert probe(path).width == 8
    # what no unpacker takes is as much as came out before
    path.write_bytes(png(8, 8, (kind, b"name\0\0\1\1\1"), (kind, b"name"), (kind, b""), rows=200))
    assert probe(path).width == 8


def test_an_animated_webp_is_refused_where_ffmpeg_does_not_read_it(tmp_path: Path) -> None:
    """FFmpeg has written them for long; 8.1 does not read them."""
    path = tmp_path / "animation.webp"
    make_file(path, Kind(video="libwebp_anim", audio=None, gop=None, video_seconds=0.4))
    with av.open(str(path)) as container, contextlib.suppress(av.error.FFmpegError):
        if any(True for _ in container.decode(video=0)):
            pytest.skip("this FFmpeg reads animated WebP")
    with pytest.raises(MediaError, match="FFmpeg here does not know; convert it"):
        read_clip(path, start_seconds=0, video=SMALL_VIDEO, audio=None)


def test_an_error_survives_pickling_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "is empty: copy it again")))
    assert (error.path, error.reason) == ("a.mp4", "is empty: copy it again")
    assert str(error) == "a.mp4: is empty: copy it again"


def assert_clip_or_error(content: bytes, seed: int) -> None:
    start_seconds = random.Random(seed).uniform(0, 2.5)
    try:
        clip = read_clip(content, start_seconds=start_seconds, video=SMALL_VIDEO, audio=SMALL_AUDIO)
    except MediaError:
        return
    assert clip.video is not None or clip.audio is not None
    assert clip.video is None or len(clip.video) == SMALL_VIDEO.num_frames
    assert clip.audio is None or len(clip.audio) == SMALL_AUDIO.num_samples


@pytest.mark.parametrize("name", ["faststart.mp4", "long_gop.mkv", "late_start.ts", "vp9.webm"])
def test_mutated_files_give_a_clip_or_an_error(name: str, media: Path) -> None:
    content = (media / name).read_bytes()
    for seed in range(24):
        assert_clip_or_error(mutated(content, seed), seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_mutated_files_give_a_clip_or_an_error(media: Path) -> None:
    names = [name for name in KINDS if KINDS[name].audio and KINDS[name].video]
    for seed in range(1_000):
        content = (media / names[seed // 4 % len(names)]).read_bytes()
        assert_clip_or_error(mutated(content, seed), seed)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files through /proc")
def test_no_file_stays_open(media: Path) -> None:
    names = ("plain.mp4", "silent.mp4", "noise.mp4", "cut_off.mp4", "empty.mp4")
    gc.collect()  # what earlier tests left behind may go any time
    before = num_open_files()
    for name in names * 5:
        path = media / name
        for source in (path, FileRange(str(path), 0, path.stat().st_size)):
            with contextlib.suppress(MediaError):
                read_clip(source, start_seconds=1.0, video=SMALL_VIDEO, audio=SMALL_AUDIO)
    gc.collect()
    assert num_open_files() <= before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory through /proc")
def test_memory_does_not_grow_over_ten_thousand_clips(media: Path) -> None:
    def resident_megabytes() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    window = FileRange(str(media / "plain.mp4"), 0, (media / "plain.mp4").stat().st_size)
    draw = random.Random(0)
    start = 0.0
    for index in range(10_500):
        if index == 500:
            start = resident_megabytes()
        read_clip(window, start_seconds=draw.uniform(0, 2), video=SMALL_VIDEO, audio=SMALL_AUDIO)
    assert resident_megabytes() - start < 50
