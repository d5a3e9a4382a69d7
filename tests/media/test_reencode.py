"""Videos encoded anew: the same pictures and sound at the same times, faster to read."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from corpus import made_once
from media_files import (
    HEIGHT,
    SMALL_AUDIO,
    SMALL_VIDEO,
    STILLS,
    WITH_PICTURE,
    Kind,
    decode_sequentially,
    make_file,
    make_folder,
    with_matrix,
    write_noise_clip,
)

from vatt.cli import main
from vatt.config.options import Reencoding
from vatt.errors import MediaError, ShardError
from vatt.media.clip import Clip, probe, read_clip
from vatt.media.reencode import reencode, reencoded_size
from vatt.packing.build import BuildReport, build_shards
from vatt.shards.shard_set import ShardSet

SAME = Reencoding(short_side=HEIGHT, key_frame_seconds=0.5, quality=1)
RGB = {"animation.gif", "animation.apng"}  # their colours have four times the pixels of 4:2:0
LUMA = torch.tensor([0.299, 0.587, 0.114])  # of BT.601


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "media", make_folder)


def clip_of(path: Path, start_seconds: float) -> Clip:
    return read_clip(
        path,
        start_seconds=start_seconds,
        video=SMALL_VIDEO,
        audio=SMALL_AUDIO,
        short_side=HEIGHT,  # as it is stored: scaling is not the same from left and from right
    )


def lag(before: np.ndarray, after: np.ndarray) -> int:
    """By how many samples the second is late."""
    middle = slice(100, -100)
    return max(range(-9, 10), key=lambda lag: float(before[middle] @ np.roll(after, -lag)[middle]))


def assert_same_clip(name: str, before: Clip, after: Clip) -> None:
    assert before.video is not None
    assert after.video is not None
    assert after.video.shape == before.video.shape
    difference = (before.video.float() - after.video.float()).abs()
    if name in RGB:
        difference = ((before.video.float() - after.video.float()) @ LUMA).abs()[..., None]
    assert difference.mean(dim=(1, 2, 3)).max() < (5 if name == "wide_pixels.mp4" else 1.5)
    assert after.video_coverage == before.video_coverage
    assert after.audio_coverage == pytest.approx(before.audio_coverage, abs=0.02)
    assert (before.audio is None) == (after.audio is None)
    if before.audio is not None and after.audio is not None and before.audio.abs().max() > 0.2:
        # Matroska rounds times to 1 ms, 16 samples, and each clip by another part of it
        limit = 8 if name.endswith((".mkv", ".webm")) else 1
        assert abs(lag(before.audio.numpy(), after.audio.numpy())) <= limit


@pytest.mark.parametrize("name", WITH_PICTURE)
def test_a_clip_is_the_same_before_and_after(name: str, media: Path, tmp_path: Path) -> None:
    assert reencode(media / name, tmp_path / "new.mp4", SAME)
    old, new = probe(media / name), probe(tmp_path / "new.mp4")
    assert (new.width, new.height) == (old.width, old.height)
    assert new.video_codec == "h264"
    assert new.audio_codec == ("aac" if old.has_audio else None)
    assert new.duration_seconds == pytest.approx(old.duration_seconds, abs=0.05)
    before = decode_sequentially(media / name, 32)
    after = decode_sequentially(tmp_path / "new.mp4", 32)
    seconds = before.seconds - before.origin_seconds
    assert after.seconds - after.origin_seconds == pytest.approx(seconds, abs=0.0005)
    for start_seconds in np.arange(0.0, old.duration_seconds - 0.1, 0.61).tolist():
        assert_same_clip(
            name,
            clip_of(media / name, start_seconds),
            clip_of(tmp_path / "new.mp4", start_seconds),
        )


@pytest.mark.parametrize("name", ["turned.mp4", "uneven.mp4", "late_start.ts", "vp9.webm"])
def test_the_short_side_is_that_asked_for_and_key_frames_are_near(
    name: str, media: Path, tmp_path: Path
) -> None:
    how = Reencoding(short_side=48, key_frame_seconds=0.2)
    reencode(media / name, tmp_path / "new.mp4", how)
    info = probe(tmp_path / "new.mp4")
    assert (info.width, info.height) == ((48, 64) if name == "turned.mp4" else (64, 48))
    with av.open(str(tmp_path / "new.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        frame = next(container.decode(video=0), None)
        assert frame is None or frame.rotation == 0
    seconds = sorted(float(p.pts * p.time_base) for p in packets)
    keys = [float(p.pts * p.time_base) for p in packets if p.is_keyframe]
    longest = max(np.diff(seconds))  # a key frame can be late by one frame
    assert max(np.diff(keys)) <= 0.2 + longest + 1e-6
    assert min(np.diff(keys)) >= 0.2 - 1e-6
    content = (tmp_path / "new.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index is in front"


def test_pictures_of_avi_are_in_order_though_their_times_are_not(tmp_path: Path) -> None:
    options = (("x264-params", "b-adapt=0:bframes=3:crf=4"),)
    make_file(tmp_path / "old.avi", Kind(audio=None, video_options=options, video_seconds=1.0))
    assert reencode(tmp_path / "old.avi", tmp_path / "new.mp4", SAME)
    old, new = (decode_sequentially(tmp_path / name, HEIGHT) for name in ("old.avi", "new.mp4"))
    assert min(np.diff(old.seconds)) < 0, "the file must have what this test is about"
    assert np.diff(new.seconds) == pytest.approx(0.04, abs=1e-6)
    assert (old.frames.float() - new.frames.float()).abs().mean(dim=(1, 2, 3)).max() < 1.5


def test_sound_of_mp4_is_copied(media: Path, tmp_path: Path) -> None:
    for name in ("plain.mp4", "late_sound.mp4", "surround.mp4"):
        reencode(media / name, tmp_path / "new.mp4", SAME)
        with av.open(str(media / name)) as old, av.open(str(tmp_path / "new.mp4")) as new:
            packets = [
                [bytes(packet) for packet in container.demux(audio=0) if packet.size]
                for container in (old, new)
            ]
        assert packets[0] == packets[1]


@pytest.mark.parametrize(("layout", "num_channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_encoded_sound_keeps_its_channels(layout: str, num_channels: int, tmp_path: Path) -> None:
    kind = Kind(audio="libopus", layout=layout, video_seconds=1.0, audio_seconds=1.0)
    make_file(tmp_path / "old.mkv", kind)
    reencode(tmp_path / "old.mkv", tmp_path / "new.mp4", SAME)
    assert probe(tmp_path / "new.mp4").num_channels == num_channels


def test_gaps_and_late_starts_of_encoded_sound_stay(tmp_path: Path) -> None:
    kinds = {
        "gap": Kind(audio="flac", audio_gap_seconds=0.5),
        "late": Kind(audio="flac", audio_start_seconds=1.0, audio_seconds=2.0),
        "late_picture": Kind(audio="flac", start_seconds=1.0, audio_start_seconds=-1.0),
        "short": Kind(audio="flac", audio_seconds=1.0),
    }
    for name, kind in kinds.items():
        make_file(tmp_path / "old.mkv", kind)
        reencode(tmp_path / "old.mkv", tmp_path / "new.mp4", SAME)
        for start_seconds in (0.0, 0.7, 1.3, 1.9):
            before = clip_of(tmp_path / "old.mkv", start_seconds)
            after = clip_of(tmp_path / "new.mp4", start_seconds)
            # smeared over two frames of AAC, 0.04 of 1.6 s
            assert after.audio_coverage == pytest.approx(before.audio_coverage, abs=0.03), name
            assert_same_clip(
                "old.mkv", before, replace(after, audio_coverage=before.audio_coverage)
            )


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("colorspace", [1, 5])  # BT.709, BT.601
def test_colours_stay(full_range: bool, colorspace: int, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "old.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "0"})
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if full_range else "yuv420p"
        context: Any = stream.codec_context
        context.colorspace, context.color_range = colorspace, 2 if full_range else 1
        image = np.zeros((64, 96, 3), np.uint8)
        image[:, 32:] = 255
        image[:, 64:] = (200, 30, 60)
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=stream.pix_fmt,
                dst_colorspace=1 if colorspace == 1 else 5,
                dst_color_range=2 if full_range else 1,
            )
            frame.pts, frame.time_base = index, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reencode(tmp_path / "old.mp4", tmp_path / "new.mp4", SAME)
    before, after = (clip_of(tmp_path / name, 0.0).video for name in ("old.mp4", "new.mp4"))
    assert before is not None
    assert after is not None
    for column in (12, 54, 96):
        assert (before[0, 16, column].int() - after[0, 16, column].int()).abs().max() <= 3


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_turns_and_mirrors_are_applied(
    matrix: tuple[int, int, int, int], media: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.mp4").write_bytes(with_matrix((media / "plain.mp4").read_bytes(), matrix))
    reencode(tmp_path / "old.mp4", tmp_path / "new.mp4", SAME)
    for start_seconds in (0.0, 1.1):
        before = clip_of(tmp_path / "old.mp4", start_seconds)
        assert_same_clip("old.mp4", before, clip_of(tmp_path / "new.mp4", start_seconds))


@pytest.mark.parametrize("name", [*STILLS, "sound.m4a", "sound.flac"])
def test_stills_and_sound_are_not_encoded(name: str, media: Path, tmp_path: Path) -> None:
    assert not reencode(media / name, tmp_path / "new.mp4", SAME)
    assert not (tmp_path / "new.mp4").exists()


def test_the_same_file_gives_the_same_bytes(media: Path, tmp_path: Path) -> None:
    for name in ("plain.mp4", "vp9.webm"):
        made = []
        for index in range(2):
            reencode(media / name, tmp_path / f"{index}.mp4", SAME)
            made.append((tmp_path / f"{index}.mp4").read_bytes())
        assert made[0] == made[1]


def test_damaged_files_are_refused(media: Path, tmp_path: Path) -> None:
    whole = (media / "faststart.mp4").read_bytes()
    packets = []
    with av.open(str(media / "faststart.mp4")) as container:
        packets = sorted(p.pos + p.size for p in container.demux() if p.size)
    # no packet is damaged, the last third is lost
    (tmp_path / "short.mp4").write_bytes(whole[: packets[len(packets) * 2 // 3]])
    for path, reason in (
        (media / "cut_off.mp4", "its video breaks off at 1.48 s"),
        (tmp_path / "short.mp4", r"breaks off at [12]\.\d+ s, though its header says 3.0"),
        (media / "noise.mp4", "no media at all"),
        (media / "empty.mp4", "no media at all"),
    ):
        with pytest.raises(MediaError, match=reason) as caught:
            reencode(path, tmp_path / "new.mp4", SAME)
        assert caught.value.path == str(path)


def test_mutated_files_are_encoded_or_refused(media: Path, tmp_path: Path) -> None:
    for seed in range(24):
        draw = random.Random(seed)
        name = draw.choice(["faststart.mp4", "late_start.ts", "vp9.webm", "mpeg2.mpg"])
        content = bytearray((media / name).read_bytes())
        for _ in range(draw.choice([1, 3, 30])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (tmp_path / name).write_bytes(content)
        try:
            reencode(tmp_path / name, tmp_path / "new.mp4", SAME)
        except MediaError:
            continue
        assert probe(tmp_path / "new.mp4").has_video


@pytest.mark.parametrize(
    ("stored", "aspect", "size"),
    [
        ((1280, 720), None, (398, 224)),
        ((720, 1280), None, (224, 398)),
        ((720, 576), Fraction(16, 15), (298, 224)),  # 4:3 television
        ((97, 33), None, (96, 32)),
        ((2, 1), None, (2, 2)),
    ],
)
def test_the_size_keeps_the_shape_and_is_even(
    stored: tuple[int, int], aspect: Fraction | None, size: tuple[int, int]
) -> None:
    assert reencoded_size(*stored, 224, aspect) == size


def build(source: Path, out: Path, **options: Any) -> BuildReport:
    how = options.pop("reencoding", Reencoding(short_side=32))
    return build_shards(source, out, order="sorted", reencoding=how, show_progress=False, **options)


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_build_encodes_what_moves_and_goes_on_past_what_it_cannot_read(
    num_workers: int, media: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "media", tmp_path / "out"
    source.mkdir()
    for name in ("plain.mp4", "vp9.webm", "sound.flac", "still.png", "noise.mp4", "empty.mp4"):
        (source / name).write_bytes((media / name).read_bytes())
    (source / "gone.mp4").symlink_to(source / "nowhere.mp4")
    report = build(source, out, num_workers=num_workers)
    assert {fault.where for fault in report.faults} == {"noise.mp4", "empty.mp4", "gone.mp4"}
    records = {record.metadata["file"]: record for record in ShardSet(out)}
    assert sorted(records) == ["plain.mp4", "sound.flac", "still.png", "vp9.webm"]
    for name, record in records.items():
        assert record.media is not None
        info = probe(record.media)
        if name in ("plain.mp4", "vp9.webm"):
            assert (info.height, info.video_codec, info.audio_codec) == (32, "h264", "aac")
        else:
            window = record.media
            stored = Path(window.path).read_bytes()[window.offset :][: window.size]
            assert stored == (media / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["media", "out"]
    assert build(source, out, num_workers=num_workers).reused
    with pytest.raises(ShardError, match="other files, captions or options"):
        build(source, out, reencoding=Reencoding(short_side=32, quality=30))


def test_two_builds_write_the_same_shards(media: Path, tmp_path: Path) -> None:
    source = tmp_path / "media"
    source.mkdir()
    for name in ("plain.mp4", "vp9.webm"):
        (source / name).write_bytes((media / name).read_bytes())
    for name in ("first", "second"):
        build(source, tmp_path / name)
    first, second = ((tmp_path / name / "00000.tar").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("out_is_there", [False, True])
def test_a_stopped_build_goes_on_where_it_was(out_is_there: bool, tmp_path: Path) -> None:
    source, out = tmp_path / "media", tmp_path / "out"
    source.mkdir()
    if out_is_there:
        out.mkdir()
    work = (out if out_is_there else tmp_path) / ".out.reencoding"
    for name in ("a.mp4", "b.mp4"):
        write_noise_clip(source / name)
    os.mkfifo(source / "waits.mp4")  # opening it waits for ever, until the signal comes
    command = [sys.executable, "-m", "vatt.cli", "shards", "build", str(source), str(out)]
    command += ["--short-side", "16", "--workers", "1", "--order", "sorted"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while len([path for path in work.glob("*") if path.suffix != ".partial"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"vatt: Stopped.\n"
    kept = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    assert len(kept) == 2
    (source / "waits.mp4").unlink()
    for path in work.iterdir():
        path.write_bytes(b"encoded before")  # to be seen in the result
    report = build(source, out, reencoding=Reencoding(short_side=16))
    assert report.num_samples == 2
    assert not report.reused
    assert (out / "00000.tar").read_bytes().count(b"encoded before") == 2
    assert not work.exists()


def test_a_file_that_has_changed_is_encoded_again(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    write_noise_clip(tmp_path / "media/a.mp4")
    (tmp_path / "media/b.mp4").write_bytes(b"no media")
    build(tmp_path / "media", tmp_path / "out")
    (tmp_path / "out/build.json").unlink()  # as if it had been stopped
    write_noise_clip(tmp_path / "media/a.mp4", num_frames=40)
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    build(tmp_path / "media", tmp_path / "out")
    (record,) = ShardSet(tmp_path / "out")
    assert record.media is not None
    assert probe(record.media).duration_seconds == pytest.approx(2.0, abs=0.05)


def test_a_full_disk_ends_the_build_and_keeps_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    write_noise_clip(tmp_path / "media/a.mp4", num_frames=5)
    write_noise_clip(tmp_path / "media/b.mp4", num_frames=400)
    program = (
        "import resource, sys; from vatt.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["shards", "build", str(tmp_path / "media"), str(tmp_path / "out")]
    command += ["--short-side", "32", "--workers", "0", "--order", "sorted"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no space left to write" in done.stderr
    assert "go on by the same command" in done.stderr
    assert len(list((tmp_path / ".out.reencoding").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short-side", "225"], "must be an even number of pixels, at least 16, got 225"),
        (["--short-side", "8"], "must be an even number of pixels, at least 16, got 8"),
        (["--short-side", "-224"], "at least 16, got -224"),
        (["--short-side", "224", "--key-frame-seconds", "0"], "must be positive and finite, got 0"),
        (["--short-side", "224", "--key-frame-seconds", "nan"], "positive and finite, got nan"),
        (["--short-side", "224", "--quality", "52"], "from 0 (lossless) to 51, got 52"),
        (["--quality", "0"], "--quality needs --short-side PIXELS"),
        (["--key-frame-seconds", "1"], "--key-frame-seconds needs --short-side PIXELS"),
    ],
)
def test_what_cannot_be_encoded_is_said_in_one_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"media")
    assert main(["shards", "build", str(tmp_path), str(tmp_path / "out"), *options]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_shards_are_not_encoded_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "media").mkdir()
    write_noise_clip(tmp_path / "media/a.mp4")
    build_shards(tmp_path / "media", tmp_path / "out", show_progress=False)
    assert main(["shards", "build", str(tmp_path / "out"), "--short-side", "64"]) == 1
    assert "--short-side is for media files" in capsys.readouterr().err


def test_help_tells_what_is_encoded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "build", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("--short-side", "--key-frame-seconds", "--quality", "to continue a stopped build"):
        assert word in " ".join(said.split())


def test_metadata_and_captions_stay(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    write_noise_clip(tmp_path / "media/a.mp4")
    line = {"file": "a.mp4", "segments": [{"text": "a dog", "start_seconds": 0, "end_seconds": 1}]}
    (tmp_path / "media/captions.jsonl").write_text(json.dumps(line))
    build(tmp_path / "media", tmp_path / "out")
    (record,) = ShardSet(tmp_path / "out")
    assert record.metadata["file"] == "a.mp4"
    assert [segment.text for segment in record.segments] == ["a dog"]


def test_key_frames_make_clips_cheaper_to_read(media: Path, tmp_path: Path) -> None:
    """Counted, not timed: packets from the key frame that a clip needs on."""
    options = (("x264-params", "scenecut=0"),)
    kind = Kind(audio=None, video_options=options, gop=250, video_seconds=8.0)
    make_file(tmp_path / "old.mp4", kind)
    reencode(tmp_path / "old.mp4", tmp_path / "new.mp4", Reencoding(short_side=32))
    lengths = []
    for name in ("old.mp4", "new.mp4"):
        with av.open(str(tmp_path / name)) as container:
            keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
        lengths.append(len(keys) / sum(keys))
    assert lengths == [200, 25]
