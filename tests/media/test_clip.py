"""Clips against the truth: pictures bit-equal to a full decode, sound in time to one sample."""

import io
import math
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from corpus import made_once
from media_files import (
    FRAME_RATE,
    HEIGHT,
    KINDS,
    SMALL_AUDIO,
    SMALL_VIDEO,
    STILLS,
    WITH_PICTURE,
    X264_OPEN_GOP,
    Kind,
    decode_sequentially,
    make_file,
    make_folder,
    picture,
    tone,
    with_matrix,
)

from vatt.config.geometry import VideoConfig
from vatt.errors import MediaError
from vatt.media.clip import Clip, probe, read_clip, read_frames, read_waveform
from vatt.media.decode_whole import decode_whole
from vatt.media.packets import Span, decoding_runs, read_packets, without_leading
from vatt.media.pictures import decode_frames
from vatt.media.source import FileRange


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "media", make_folder)


@pytest.mark.parametrize("name", WITH_PICTURE)
def test_frames_are_bit_equal_to_a_sequential_decode(name: str, media: Path) -> None:
    sequence = decode_sequentially(media / name, 32)
    draw = random.Random(name)
    end_seconds = probe(media / name).duration_seconds
    for frame_rate in (10.0, 10.0, 3.0, 40.0):
        start_seconds = draw.uniform(0, end_seconds - 0.01)
        frames, _ = read_frames(
            media / name,
            start_seconds=start_seconds,
            num_frames=8,
            frame_rate=frame_rate,
            short_side=32,
        )
        assert torch.equal(frames, sequence.at(start_seconds, 8, frame_rate))


def test_matroska_with_frames_out_of_order_gives_the_right_one_at_any_start(tmp_path: Path) -> None:
    # After a seek FFmpeg knows no decoding times for the first packets of such a file.
    options = (("bf", "3"), ("b_strategy", "0"))
    kind = Kind(audio=None, video_options=options, gop=12, frame_rate=5, video_seconds=12.0)
    make_file(tmp_path / "slow.mkv", kind)
    sequence = decode_sequentially(tmp_path / "slow.mkv", 32)
    for start_seconds in np.arange(0.05, 12, 0.2).tolist():
        frames, coverage = read_frames(
            tmp_path / "slow.mkv",
            start_seconds=start_seconds,
            num_frames=1,
            frame_rate=5.0,
            short_side=32,
        )
        assert torch.equal(frames, sequence.at(start_seconds, 1, 5.0)), start_seconds
        assert coverage == 1


@pytest.mark.parametrize(
    ("options", "starts_anew"),
    [
        ("b-adapt=0:bframes=3:keyint=12:scenecut=0", True),
        ("b-adapt=0:bframes=7:b-pyramid=normal:ref=5:keyint=25:scenecut=0", True),
        (X264_OPEN_GOP[0][1], False),
    ],
)
def test_avi_whose_times_are_those_of_storage_gives_pictures_as_they_are_shown(
    options: str, starts_anew: bool, tmp_path: Path
) -> None:
    path = tmp_path / "stored.avi"
    make_file(path, Kind(gop=None, video_options=(("x264-params", options),)))
    sequence = decode_sequentially(path, 32)
    assert min(np.diff(sequence.seconds)) < 0, "the file must have what this test is about"
    sequence.seconds.sort()
    draw = random.Random(options)
    for frame_rate in (25.0, 10.0, 3.0, 40.0) * 4:
        start_seconds = draw.uniform(0, 2.95)
        frames, _ = read_frames(
            path,
            start_seconds=start_seconds,
            num_frames=4,
            frame_rate=frame_rate,
            short_side=32,
        )
        assert torch.equal(frames, sequence.at(start_seconds, 4, frame_rate)), start_seconds
    with av.open(str(path)) as container:
        packets = read_packets(container, container.streams.video[0], None, Span(2.5, 2.6, 2.6))
        assert (packets.video[0].dts > 0) == starts_anew, "an open group needs all that precede it"


def read_packets_of(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.pts is not None]


def test_the_plan_leaves_out_what_no_needed_frame_is_made_from(media: Path) -> None:
    packets = read_packets_of(media / "open_gop.mp4")
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    second = packets[keys[1]]
    leading = packets[keys[1] + 1]
    assert leading.pts < second.pts, "the file must have what this test is about"

    # a jump: the second group starts without its leading pictures, which need the first group
    runs = decoding_runs(packets, {packets[0].pts, packets[keys[1] + 8].pts})
    assert [run[0].pts for run in runs] == [packets[0].pts, second.pts]
    assert len(runs[0]) == 1
    assert all(packet.pts >= second.pts for packet in runs[1])
    assert runs[1][-1].pts == packets[keys[1] + 8].pts

    # no jump: a leading picture is made from the whole first group
    (run,) = decoding_runs(packets, {packets[0].pts, leading.pts})
    assert [packet.pts for packet in run] == [p.pts for p in packets[: keys[1] + 2]]

    # nothing of the first group is needed
    (run,) = decoding_runs(packets, {second.pts})
    assert [packet.pts for packet in run] == [second.pts]


@pytest.mark.parametrize("name", ["plain.mp4", "open_gop.mp4", "hevc.mp4", "vp9.webm"])
def test_a_clip_is_planned_from_its_last_key_frame_and_decodes_at_once(
    name: str, media: Path
) -> None:
    for start_seconds in np.arange(0.3, 2.8, 0.2).tolist():
        wanted = [start_seconds + index / 10 for index in range(4)]
        with av.open(str(media / name)) as container:
            video = container.streams.video[0]
            span = Span(start_seconds, wanted[-1], wanted[-1])
            packets = read_packets(container, video, None, span)
            keys = [packet.pts for packet in packets.video if packet.is_keyframe]
            limit = start_seconds / video.time_base
            assert [key <= limit for key in keys] == [True] + [False] * (len(keys) - 1)
            if not packets.from_start:
                assert all(packet.pts >= keys[0] for packet in without_leading(packets))
            frames, _ = decode_frames(video, packets, wanted, 32)  # raises where a frame is missing
            assert len(frames) == 4


def test_the_frame_at_each_time_is_the_last_that_began(media: Path) -> None:
    """Against the pictures that went in, not against another decoder."""
    frames, coverage = read_frames(
        media / "plain.mp4", start_seconds=0.5, num_frames=8, frame_rate=5.0, short_side=HEIGHT
    )
    assert coverage == 1
    for index, frame in enumerate(frames):
        wanted = math.floor((0.5 + index / 5.0 + 1e-6) * FRAME_RATE)
        distances = [
            np.abs(frame.numpy().astype(int) - picture(candidate)).mean()
            for candidate in range(wanted - 2, wanted + 3)
        ]
        assert int(np.argmin(distances)) == 2


def test_the_last_frame_repeats_past_the_end_and_sound_is_zero(media: Path) -> None:
    clip = read_clip(media / "plain.mp4", start_seconds=2.2, video=SMALL_VIDEO, audio=SMALL_AUDIO)
    assert clip.video is not None
    assert clip.audio is not None
    # 0.8 s of 1.6 s are there: 4 of 8 frames
    assert clip.video_coverage == pytest.approx(0.5)
    assert clip.audio_coverage == pytest.approx(0.5, abs=0.02)
    last, _ = read_frames(
        media / "plain.mp4", start_seconds=2.97, num_frames=1, frame_rate=5.0, short_side=32
    )
    assert all(torch.equal(frame, last[0]) for frame in clip.video[4:])
    assert not clip.audio[13_200:].any()
    assert clip.audio[:12_000].abs().max() > 0.3


def test_a_picture_that_ended_before_the_sound_keeps_its_last_frame(media: Path) -> None:
    clip = read_clip(
        media / "long_sound.mp4", start_seconds=1.2, video=SMALL_VIDEO, audio=SMALL_AUDIO
    )
    assert clip.video is not None
    assert clip.video_coverage == 0
    assert clip.audio_coverage == 1
    assert torch.equal(clip.video[0], clip.video[-1])


@pytest.mark.parametrize("start_seconds", [3.0, 3.5, 1e9])
def test_a_start_at_or_after_the_end_is_an_error(start_seconds: float, media: Path) -> None:
    with pytest.raises(MediaError, match="ends at 3.00 s.*choose an earlier start"):
        read_clip(
            media / "plain.mp4", start_seconds=start_seconds, video=SMALL_VIDEO, audio=SMALL_AUDIO
        )


@pytest.mark.parametrize("start_seconds", [-0.1, math.nan, math.inf])
def test_a_start_that_is_no_time_is_a_value_error(start_seconds: float, media: Path) -> None:
    with pytest.raises(ValueError, match="start_seconds"):
        read_clip(
            media / "plain.mp4", start_seconds=start_seconds, video=SMALL_VIDEO, audio=SMALL_AUDIO
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("late.mp4", Kind(start_seconds=5.0)),
        ("late.mkv", Kind(start_seconds=5.0)),
        ("somewhat_late.mkv", Kind(start_seconds=0.6)),
        ("late.ts", Kind(start_seconds=5.0)),
        ("late.webm", replace(KINDS["vp9.webm"], start_seconds=5.0)),
        ("late.opus", replace(KINDS["sound.opus"], start_seconds=5.0)),
    ],
)
def test_a_file_whose_clock_starts_late_is_as_long_as_its_content(
    name: str, kind: Kind, tmp_path: Path
) -> None:
    make_file(tmp_path / name, kind)
    assert probe(tmp_path / name).duration_seconds == pytest.approx(3.0, abs=0.04)
    decode_whole(FileRange(str(tmp_path / name), 0, (tmp_path / name).stat().st_size))
    clip = read_clip(tmp_path / name, start_seconds=2.2, video=SMALL_VIDEO, audio=SMALL_AUDIO)
    assert clip.audio_coverage == pytest.approx(0.5, abs=0.03)
    with pytest.raises(MediaError, match=r"ends at 3.0\d s, before 3.10 s"):
        read_clip(tmp_path / name, start_seconds=3.1, video=SMALL_VIDEO, audio=SMALL_AUDIO)


@pytest.mark.parametrize("start_seconds", [0.6, 2.96, 5.0])
@pytest.mark.parametrize("audio", ["aac", None])
def test_matroska_that_counts_its_duration_from_the_first_frame_keeps_its_last_seconds(
    start_seconds: float, audio: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "late.mkv"
    make_file(path, Kind(start_seconds=start_seconds, audio=audio))
    content = path.read_bytes()
    place = content.index(b"\x44\x89\x88") + 3  # Duration, 8 bytes, in ms: as mkvmerge has it
    (milliseconds,) = struct.unpack_from(">d", content, place)
    shorter = struct.pack(">d", milliseconds - 1000 * start_seconds)
    path.write_bytes(content[:place] + shorter + content[place + 8 :])
    assert probe(path).duration_seconds == pytest.approx(3.0, abs=0.04)
    sequence = decode_sequentially(path, 32)
    request: dict[str, Any] = {"video": SMALL_VIDEO, "audio": SMALL_AUDIO if audio else None}
    for start in (0.0, 0.1, 2.6, 2.9):
        clip = read_clip(path, start_seconds=start, **request)
        assert clip.video is not None
        assert torch.equal(clip.video, sequence.at(start, 8, 5.0))
        if audio:
            alone = read_clip(path, **{**request, "video": None}, start_seconds=start)
            for one in (clip, alone):
                assert one.audio_coverage == pytest.approx(min(1.0, (3.01 - start) / 1.6), abs=0.01)
    with pytest.raises(MediaError, match=r"ends at 3.0\d s, before 3.10 s"):
        read_clip(path, start_seconds=3.1, **request)


@pytest.mark.parametrize("name", STILLS)
def test_a_still_image_is_one_frame_that_repeats_at_any_start(name: str, media: Path) -> None:
    assert probe(media / name).duration_seconds == 0 or name == "still.gif"
    for start_seconds in (0.0, 7.5):
        clip = read_clip(
            media / name, start_seconds=start_seconds, video=SMALL_VIDEO, audio=SMALL_AUDIO
        )
        assert clip.audio is None
        assert clip.video is not None
        assert clip.video.shape == (8, 32, 42, 3)
        assert clip.video_coverage == 1
        assert all(torch.equal(frame, clip.video[0]) for frame in clip.video)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # a quarter turn clockwise
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),  # mirrored, as selfie cameras do
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_frames_are_turned_and_mirrored_as_the_file_says(
    matrix: tuple[int, int, int, int], turn: Any, media: Path
) -> None:
    stored = (media / "plain.mp4").read_bytes()
    request: dict[str, Any] = {
        "start_seconds": 1.0,
        "num_frames": 2,
        "frame_rate": 5.0,
        "short_side": 36,
    }
    plain, _ = read_frames(stored, **request)
    turned, _ = read_frames(with_matrix(stored, matrix), **request)
    for before, after in zip(plain.numpy(), turned.numpy(), strict=True):
        assert np.array_equal(turn(before), after)


def test_a_size_rule_is_asked_about_the_picture_as_displayed(media: Path) -> None:
    turned = with_matrix((media / "plain.mp4").read_bytes(), (0, 1, -1, 0))
    video = VideoConfig(num_frames=2, frame_rate=5.0, image_size=32, patch_size=(2, 8, 8))
    shown = probe(turned)
    assert shown.width is not None
    assert shown.height is not None
    assert shown.width < shown.height
    for source in (turned, media / "wide_pixels.mp4"):
        info, asked = probe(source), []

        def rule(width: float, height: float, asked: list[Any] = asked) -> tuple[int, int]:
            asked.append((width, height))
            return 40, 24

        clip = read_clip(source, start_seconds=0, video=video, audio=None, size_rule=rule)
        assert asked == [(info.width, info.height)]
        assert clip.video is not None
        assert clip.video.shape == (2, 24, 40, 3)


def test_wide_pixels_are_shown_wide(media: Path) -> None:
    info = probe(media / "wide_pixels.mp4")
    assert (info.width, info.height) == (128, 72)
    frames, _ = read_frames(
        media / "wide_pixels.mp4", start_seconds=0, num_frames=1, frame_rate=5.0, short_side=36
    )
    assert frames.shape == (1, 36, 64, 3)


def test_colours_keep_black_and_white() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, 32:] = 255
        for packet in [
            *stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")),
            *stream.encode(None),
        ]:
            container.mux(packet)
    frames, _ = read_frames(
        buffer.getvalue(), start_seconds=0, num_frames=1, frame_rate=5.0, short_side=64
    )
    assert frames[0, :, :30].max() <= 1
    assert frames[0, :, 34:].min() >= 254


def lag_in_samples(waveform: torch.Tensor, start_seconds: float, sample_rate: int) -> int:
    """By how many samples the waveform is late against the tone that went in."""
    heard = waveform.numpy().astype(float)[200:-200]

    def likeness(lag: int) -> float:
        seconds = start_seconds + (np.arange(200, 200 + len(heard)) - lag) / sample_rate
        return float(np.dot(heard, tone(seconds)))

    return max(range(-40, 41), key=likeness)


@pytest.mark.parametrize("sample_rate", [48_000, 16_000])
@pytest.mark.parametrize(
    ("name", "tolerance_seconds"),
    [
        ("plain.mp4", 0),
        ("mono.mp4", 0),
        ("surround.mp4", 0),
        ("sound.m4a", 0),
        ("sound.flac", 0),
        ("sound.opus", 0),
        ("pictures.mov", 0),
        ("long_gop.mkv", 0.001),  # Matroska and WebM round times to 1 ms
        ("vp9.webm", 0.001),
    ],
)
def test_sound_is_in_time_to_one_sample(
    name: str, tolerance_seconds: float, sample_rate: int, media: Path
) -> None:
    draw = random.Random(name)
    for _ in range(3):
        start_seconds = draw.uniform(0.0, 2.0)
        waveform, coverage = read_waveform(
            media / name,
            start_seconds=start_seconds,
            num_samples=sample_rate // 2,
            sample_rate=sample_rate,
        )
        assert coverage == 1
        lag = lag_in_samples(waveform, start_seconds, sample_rate)
        assert abs(lag) <= 1 + tolerance_seconds * sample_rate


def test_sound_from_a_middle_equals_sound_from_the_start(media: Path) -> None:
    """The pre-roll gives lossy codecs what they need of the past."""
    # Opus comes close to its state before the seek, but never quite
    for name, tolerance in (("plain.mp4", 1e-4), ("sound.mp3", 1e-4), ("sound.opus", 0.02)):
        whole, _ = read_waveform(
            media / name, start_seconds=0, num_samples=96_000, sample_rate=48_000
        )
        part, _ = read_waveform(
            media / name, start_seconds=1.0, num_samples=48_000, sample_rate=48_000
        )
        assert (part - whole[48_000:]).abs().max() < tolerance, name


@pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if kind.audio_seconds == 3 and kind.audio]
)
def test_sound_can_be_read_from_any_start(name: str, media: Path) -> None:
    for start_seconds in np.arange(0.1, 2.2, 0.3).tolist():
        waveform, coverage = read_waveform(
            media / name, start_seconds=start_seconds, num_samples=4_000, sample_rate=16_000
        )
        assert coverage == 1 or "gap" in name
        assert waveform.abs().max() > 0.3 or "gap" in name


@pytest.mark.parametrize("name", ["plain.mp4", "mono.mp4"])
def test_channels_are_mixed_without_leaving_full_scale(name: str, media: Path) -> None:
    waveform, _ = read_waveform(
        media / name, start_seconds=1.0, num_samples=8_000, sample_rate=16_000
    )
    # the AAC encoder of FFmpeg 9 adds 0.023
    assert waveform.abs().max().item() == pytest.approx(0.4, abs=0.03)


def test_sound_that_begins_late_is_preceded_by_zeros(media: Path) -> None:
    waveform, coverage = read_waveform(
        media / "late_sound.mp4", start_seconds=0.5, num_samples=16_000, sample_rate=16_000
    )
    assert not waveform[:7_600].any()
    assert waveform[8_200:].abs().max() > 0.3
    assert coverage == pytest.approx(0.5, abs=0.03)


def test_a_gap_in_the_sound_is_zero_and_what_follows_is_in_time(media: Path) -> None:
    path = media / "gap_in_sound.mp4"  # 1.5 s of sound, 0.5 s of nothing, 1.5 s of sound
    waveform, coverage = read_waveform(
        path, start_seconds=1.0, num_samples=64_000, sample_rate=32_000
    )
    assert coverage == pytest.approx(0.75, abs=0.03)
    assert not waveform[17_500:31_000].any()
    assert abs(lag_in_samples(waveform[:15_000], 1.0, 32_000)) <= 1
    assert abs(lag_in_samples(waveform[34_000:], 34_000 / 32_000 + 0.5, 32_000)) <= 1


def test_sound_that_ended_is_zero_with_no_coverage(media: Path) -> None:
    waveform, coverage = read_waveform(
        media / "short_sound.mp4", start_seconds=1.5, num_samples=16_000, sample_rate=16_000
    )
    assert coverage == 0
    assert not waveform.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": torch.zeros(2, 4, 4, 3)}, "video must be uint8"),
        ({"audio": torch.zeros(1, 8)}, "audio must be float32"),
        ({"audio_coverage": 1.5}, "coverages must be from 0 to 1"),
    ],
)
def test_a_clip_refuses_what_is_no_clip(changes: dict[str, Any], message: str) -> None:
    clip = {"video": None, "audio": None, "video_coverage": 0.0, "audio_coverage": 0.0}
    with pytest.raises(ValueError, match=message):
        Clip(**{**clip, "start_seconds": 0.0, **changes})
