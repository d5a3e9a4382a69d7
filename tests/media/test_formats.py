"""Every format that FFmpeg writes here: clips at random starts are what its decode gives there."""

import os
import zlib
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from sequential import decoded, pictures, tune

from vatt import probe, read_frames, read_waveform

SECONDS = 4
CLIP_SECONDS = 0.3  # where a decoder that has not settled is heard
NUM_STARTS = 6
STEP_SECONDS = 0.1  # pictures and sound are written in turn

# extension: encoders of pictures, and of the sound beside them, one for each or in turn
FILMS: dict[str, tuple[str, str]] = {
    "mp4": (
        "libx264 libx265 mpeg4 mpeg2video libsvtav1 libvpx-vp9 mjpeg png",
        "aac libmp3lame ac3 eac3 libopus flac alac mp2",
    ),
    "mov": (
        "libx264 libx265 mpeg4 mpeg2video mpeg1video mjpeg prores_ks dnxhd qtrle svq1 cinepak "
        "dvvideo jpeg2000 rawvideo v210 png h263 cfhd rpza",
        "aac alac pcm_s16le pcm_s16be pcm_s24le pcm_s32le pcm_f32le pcm_f64le pcm_alaw pcm_mulaw "
        "adpcm_ima_qt libmp3lame ac3 pcm_s8 pcm_u8",
    ),
    "mkv": (
        "libx264 libx265 mpeg4 mpeg2video mpeg1video libvpx libvpx-vp9 libsvtav1 mjpeg prores_ks "
        "ffv1 snow vc2 msmpeg4 rawvideo libx264rgb",
        "aac libmp3lame ac3 eac3 libopus vorbis flac alac mp2 pcm_s16le pcm_s24le pcm_f32le "
        "wavpack",
    ),
    "webm": ("libvpx libvpx-vp9 libsvtav1", "vorbis libopus"),
    "avi": (
        "libx264 mpeg4 msmpeg4 msmpeg4v2 mjpeg mpeg2video mpeg1video huffyuv ffvhuff ffv1 utvideo "
        "magicyuv cinepak msvideo1 zmbv wmv1 wmv2 flv rawvideo dvvideo snow asv1 asv2 zlib "
        "h263p libvpx",
        "libmp3lame pcm_s16le pcm_u8 adpcm_ms adpcm_ima_wav ac3 mp2 aac wmav2 pcm_mulaw pcm_alaw "
        "pcm_s24le pcm_f32le adpcm_yamaha",
    ),
    "flv": (
        "flv libx264 flashsv libx265 libsvtav1 libvpx-vp9",
        "libmp3lame aac nellymoser pcm_s16le adpcm_swf pcm_u8 libopus ac3",
    ),
    "ts": (
        "libx264 libx265 mpeg2video mpeg1video mpeg4 vc2",
        "mp2 libmp3lame aac ac3 eac3 libopus",
    ),
    "m2ts": ("libx264 libx265 mpeg2video", "ac3 eac3 pcm_bluray mp2"),
    "mpg": ("mpeg1video mpeg2video", "mp2 libmp3lame"),
    "vob": ("mpeg2video mpeg1video", "ac3 mp2"),
    "ogv": ("libvpx", "vorbis libopus flac"),
    "wmv": ("wmv2 wmv1 msmpeg4 mpeg4 libx264 mjpeg msmpeg4v2", "wmav2 wmav1 libmp3lame pcm_s16le"),
    "3gp": ("h263 mpeg4 libx264", "libopencore_amrnb aac"),
    "3g2": ("h263 mpeg4 libx264", "aac libopencore_amrnb"),
    "m4v": ("mpeg4", ""),
    "mxf": (
        "mpeg2video libx264 dnxhd prores_ks jpeg2000 dvvideo",
        "pcm_s16le pcm_s24le",
    ),
    "nut": ("libx264 mpeg4 ffv1 libvpx", "libmp3lame vorbis pcm_s16le flac libopus"),
    "dv": ("dvvideo", "pcm_s16le"),
    "wtv": ("mpeg2video mpeg4", "mp2 ac3"),
    "gif": ("gif", ""),
    "apng": ("apng", ""),
    "ivf": ("libvpx libvpx-vp9 libsvtav1", ""),
    "y4m": ("wrapped_avframe", ""),
    "m2v": ("mpeg2video", ""),
    "m1v": ("mpeg1video", ""),
}
SOUNDS: dict[str, str] = {
    "wav": "pcm_s16le pcm_u8 pcm_s24le pcm_s32le pcm_f32le pcm_f64le pcm_alaw pcm_mulaw adpcm_ms "
    "adpcm_ima_wav adpcm_yamaha libmp3lame mp2 ac3 g722 g726",
    "w64": "pcm_s16le pcm_f32le adpcm_ms",
    "aiff": "pcm_s16be pcm_s24be pcm_s8 pcm_s32be pcm_f32be pcm_f64be pcm_alaw pcm_mulaw "
    "pcm_s16le adpcm_ima_qt",
    "au": "pcm_s16be pcm_s8 pcm_s24be pcm_f32be pcm_f64be pcm_alaw pcm_mulaw",
    "caf": "pcm_s16be pcm_s16le pcm_s24le pcm_f32le alac adpcm_ima_qt flac "
    "libmp3lame libopencore_amrnb pcm_mulaw",
    "mp3": "libmp3lame",
    "mp2": "mp2",
    "aac": "aac",
    "latm": "aac",
    "ac3": "ac3",
    "eac3": "eac3",
    "flac": "flac",
    "ogg": "vorbis libopus flac",
    "oga": "flac vorbis",
    "opus": "libopus",
    "spx": "libopus",
    "amr": "libopencore_amrnb",
    "m4a": "aac alac ac3",
    "mka": "vorbis libopus libmp3lame aac tta wavpack pcm_s24le flac eac3",
    "weba": "libopus vorbis",
    "wma": "wmav2 wmav1",
    "tta": "tta",
    "wv": "wavpack",
    "voc": "pcm_u8 pcm_s16le pcm_alaw",
    "sbc": "sbc",
    "aptx": "aptx",
    "g722": "g722",
    "adx": "adpcm_adx",
    "sox": "pcm_s32le",
    "ircam": "pcm_s16le pcm_f32le",
    "ra": "ac3",
}
FORMATS = {
    **{"spx": "ogg", "weba": "webm", "mka": "matroska", "mpg": "mpeg", "ra": "rm", "aac": "adts"},
    **{"y4m": "yuv4mpegpipe", "wma": "asf", "wmv": "asf"},
}
# in the default run: formats whose reading differs most
SHORT = (
    "mkv-libx264-aac",
    "ts-mpeg2video-aac",
    "avi-mpeg4-pcm_s16le",
    "mp3-libmp3lame",
    "ogg-vorbis",
)

SIZES = ((64, 48), (96, 64), (80, 176))
ODD_SIZES = ((97, 71), (53, 37))
FREE_SIZES = frozenset(
    (
        *("ffv1", "png", "rawvideo", "gif", "apng"),
        *("qtrle", "flashsv", "zmbv", "magicyuv", "libvpx-vp9"),
    )
)
RATES = (Fraction(25), Fraction(30_000, 1001), Fraction(24))
FREE_RATES = (*RATES, Fraction(10), Fraction(50), Fraction(15))
LEGAL_RATES = frozenset({"mpeg1video", "mpeg2video", "rv10", "rv20"})
B_FRAMES = frozenset({"libx264", "libx265", "mpeg4", "mpeg2video", "mpeg1video", "libx264rgb"})
STORAGE_ORDER = ("wmv", "mxf")  # FFmpeg writes H.264 into them without times of display
GOPS = (1, 12, 40, 250)
LATE = {"mkv": (0.0, 0.7, 5.0), "ts": (0.0, 5.0, 40_000.0, 95_440.0), "flv": (0.0, 5.0)}
PIXELS = ("yuv420p", "yuvj420p", "yuv422p", "yuv422p10le", "rgb24", "rgb8", "bgr24", "bgr0")
FIXED: dict[str, dict[str, Any]] = {
    "dvvideo": {"size": (720, 576), "rate": Fraction(25)},
    "dnxhd": {"size": (256, 144), "options": {"profile": "dnxhr_sq"}, "pixels": "yuv422p"},
    "mjpeg": {"pixels": "yuvj420p"},
    "h263": {"size": (128, 96)},
    "rv10": {"size": (128, 96)},
    "rv20": {"size": (128, 96)},
    "libsvtav1": {"size": (96, 64), "options": {"preset": "12"}, "gop": 30},
    "libx265": {"options": {"x265-params": "log-level=none"}},
    "libvpx": {"options": {"cpu-used": "16", "auto-alt-ref": "1", "lag-in-frames": "8"}},
    "libvpx-vp9": {"options": {"cpu-used": "8"}},
    "jpeg2000": {"size": (64, 64)},
    "cfhd": {"size": (256, 144)},
    "vc2": {"size": (128, 96)},
    "cinepak": {"size": (64, 48)},
}
SAMPLE_RATES = (22_050, 44_100, 48_000, 32_000)
FIXED_RATES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("libopencore_amrnb", "real_144", "g726"), (8_000,)),
    **dict.fromkeys(("libopus", "pcm_dvd", "pcm_bluray", "aptx", "dca"), (48_000,)),
    **dict.fromkeys(("ac3", "eac3", "adpcm_yamaha"), (32_000, 44_100, 48_000)),
    "adpcm_swf": (22_050, 44_100),
    "nellymoser": (22_050, 44_100, 8_000),
    "g722": (16_000,),
    "sbc": (32_000, 44_100, 48_000),
    "libmp3lame": (8_000, 16_000, 22_050, 44_100, 48_000),
}
BIT_RATES = {"libopencore_amrnb": 12_200, "g726": 32_000, "real_144": 8_000, "ac3": 128_000}
MONO = frozenset({"libopencore_amrnb", "nellymoser", "real_144", "g722", "g726"})
STEREO = frozenset({"vorbis", "aptx", "pcm_bluray", "pcm_dvd"})
# their decoders fill bands and rounded-off bits with noise, which no two decodes share; a packet of
# ADPCM from QuickTime tells its first sample to 9 bits, and FFmpeg trusts the one before it more
NOISY = frozenset({"aac", "ac3", "eac3", "nellymoser", "wmav1", "adpcm_ima_qt"})
# containers that round times to 1 ms; FFmpeg rounds each frame of raw AC-3 and SBC to 1/90,000 s,
# which makes 0.9 ms a second with the short ones of SBC
SLACK_SECONDS = {
    **dict.fromkeys(("mkv", "webm", "mka", "weba", "flv", "wmv", "wma", "ra", "nut"), 1e-3),
    **dict.fromkeys(("ac3", "eac3"), 2e-3),
    "sbc": 5e-3,
}


@dataclass(frozen=True)
class Case:
    """A file to write; what is not fixed is drawn from its name."""

    extension: str
    video: str = ""
    audio: str = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.extension, self.video, self.audio) if part)


def cases() -> list[Case]:
    found = []
    for extension, (videos, audios) in FILMS.items():
        video, audio = videos.split(), audios.split()
        for place in range(max(len(video), len(audio))):
            sound = audio[place % len(audio)] if audio else ""
            found.append(Case(extension, video[place % len(video)], sound))
    found += [Case(ext, "", codec) for ext, codecs in SOUNDS.items() for codec in codecs.split()]
    return found


CASES = cases()


@dataclass
class Plan:
    """Settings of the streams of a case."""

    draw: Any
    case: Case
    size: tuple[int, int] = (64, 48)
    rate: Fraction = Fraction(25)
    gop: int = 12
    b_frames: int = 0
    pixels: str = "yuv420p"
    late_seconds: float = 0.0
    sample_rate: int = 48_000
    layout: str = "mono"
    options: dict[str, str] = field(default_factory=dict)


def plan(case: Case, seed: int = 0) -> Plan:
    draw = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    made = Plan(draw, case)
    if case.video:
        sizes = SIZES + (ODD_SIZES if case.video in FREE_SIZES else ())
        made.size = sizes[draw.integers(len(sizes))]
        rates = RATES if case.video in LEGAL_RATES or case.extension == "mxf" else FREE_RATES
        made.rate = rates[draw.integers(len(rates))]
        made.gop = GOPS[draw.integers(len(GOPS))]
        made.b_frames = int(draw.integers(0, 4)) if case.video in B_FRAMES else 0
        if case.video == "libx264" and case.extension in STORAGE_ORDER:
            made.b_frames = 0
        formats = [one.name for one in av.codec.Codec(case.video, "w").video_formats or ()]
        made.pixels = next((one for one in PIXELS if one in formats), (formats or PIXELS)[0])
        for name, value in FIXED.get(case.video, {}).items():
            setattr(made, name, value)
    if case.audio:
        rates = FIXED_RATES.get(case.audio, SAMPLE_RATES)
        rates = (48_000,) if case.extension in ("mxf", "dv") else rates
        rates = (
            tuple(sorted({44_100, 22_050} & set(rates)) or rates)
            if case.extension == "flv"
            else rates
        )
        made.sample_rate = rates[draw.integers(len(rates))]
        made.layout = (
            "stereo"
            if draw.integers(2) or case.audio in STEREO or case.extension == "dv"
            else "mono"
        )
        made.layout = "mono" if case.audio in MONO else made.layout
    late = LATE.get(case.extension, (0.0,))
    made.late_seconds = late[draw.integers(len(late))]
    return made


def write(path: Path, made: Plan) -> None:
    """Encodes pictures of noise, each another, and a tune."""
    case = made.case
    form = FORMATS.get(case.extension)
    with av.open(str(path), "w", format=form, options={"strict": "experimental"}) as out:
        video = audio = None
        if case.video:
            video = out.add_stream(case.video, rate=made.rate, options=dict(made.options))
            video.width, video.height = made.size
            video.pix_fmt = made.pixels
            video.codec_context.gop_size = made.gop
            video.codec_context.max_b_frames = made.b_frames
            video.codec_context.bit_rate = 400_000 if case.video != "dvvideo" else 25_000_000
        if case.audio:
            audio = out.add_stream(
                case.audio,
                rate=made.sample_rate,
                layout=made.layout,
                options={"strict": "experimental"},
            )
            audio.bit_rate = BIT_RATES.get(case.audio, 64_000)
        sound = tune(SECONDS * made.sample_rate, made.sample_rate, seed=1)
        mix = None
        next_picture = next_sample = 0
        for step in range(1, round(SECONDS / STEP_SECONDS) + 1):
            while video is not None and next_picture < step * STEP_SECONDS * made.rate:
                out.mux(video.encode(frame_of(next_picture, made)))
                next_picture += 1
            end = round(step * STEP_SECONDS * made.sample_rate)
            if audio is not None:
                mix = mix or av.AudioResampler(
                    audio.format, audio.layout, made.sample_rate, audio.frame_size or 1024
                )
                piece = AudioFrame.from_ndarray(sound[None, next_sample:end], "fltp", "mono")
                piece.sample_rate, piece.time_base = made.sample_rate, Fraction(1, made.sample_rate)
                piece.pts = next_sample + round(made.late_seconds * made.sample_rate)
                for part in mix.resample(piece):
                    out.mux(audio.encode(part))
                next_sample = end
        if mix is not None:
            for part in mix.resample(None):
                out.mux(audio.encode(part))
        for stream in (video, audio):
            if stream is not None:
                out.mux(stream.encode(None))


def frame_of(place: int, made: Plan) -> VideoFrame:
    width, height = made.size
    random = np.random.default_rng(place)
    blocks = np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1)))
    tiled = np.tile(blocks, (-(-height // 48), -(-width // 64), 1))[:height, :width]
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(tiled.astype(np.uint8)), "rgb24")
    frame = frame.reformat(format=made.pixels)
    frame.pts = place + round(made.late_seconds * made.rate)
    frame.time_base = 1 / made.rate
    return frame


def starts_of(draw: Any, end_seconds: float) -> list[float]:
    return [0.0, *draw.uniform(0, end_seconds - CLIP_SECONDS - 0.05, NUM_STARTS - 1)]


def check_pictures(path: Path, made: Plan) -> None:
    truth = pictures(path)
    times = np.array([time for time, _ in truth])
    assert len(truth) >= 0.9 * SECONDS * made.rate
    for start in starts_of(made.draw, float(times[-1])):
        place = max(0, int(np.searchsorted(times, start + 1e-6, side="right")) - 1)
        start = float(times[place : place + 2].mean())  # between two: containers round times
        clip, coverage = read_frames(
            path,
            start_seconds=max(0.0, start),
            num_frames=1,
            frame_rate=1.0,
            size_rule=lambda _width, _height: (32, 24),
        )
        assert coverage == 1.0, (made, start)
        np.testing.assert_array_equal(
            clip[0].numpy(), truth[place][1], err_msg=f"{made} at {start}"
        )


def shift_and_difference(
    clip: np.ndarray, samples: np.ndarray, first: int, margin: int
) -> tuple[int, float]:
    """Where a clip lies in a file's sound, and how it differs there, relative to its level."""
    level = np.sqrt(np.mean(samples**2))
    found = {}
    padded = np.pad(samples, (margin, 0))
    for place in range(first - margin, first + margin + 1):
        part = padded[place + margin : place + margin + len(clip)]
        if len(part) == len(clip):
            found[place] = float(np.sqrt(np.mean((part - clip) ** 2)) / level)
    best = min(found, key=found.__getitem__)
    return best, found[best]


def check_sound(path: Path, made: Plan) -> None:
    samples, rate, begin = decoded(path)
    end = begin + len(samples) / rate
    assert len(samples) >= 0.9 * SECONDS * rate
    bound = 0.1 if made.case.audio in NOISY else 1e-3
    slack = 1.5 + SLACK_SECONDS.get(made.case.extension, 0.0) * rate
    for start in starts_of(made.draw, end):
        start = max(start, begin)
        clip, coverage = read_waveform(
            path, start_seconds=start, num_samples=round(CLIP_SECONDS * rate), sample_rate=rate
        )
        expected = (start - begin) * rate
        place, difference = shift_and_difference(
            clip.numpy(), samples, round(expected), round(0.006 * rate)
        )
        what = f"{made} at {start}: {difference=} shift={place - expected}"
        assert coverage > 0.99, what
        assert difference < bound, what
        assert abs(place - expected) <= slack, what


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in SHORT else pytest.mark.slow)
        for case in CASES
    ],
)
def test_clips_are_those_of_a_sequential_decode(case: Case, tmp_path: Path) -> None:
    for codec in (case.video, case.audio):
        if codec and codec not in av.codec.codecs_available:
            pytest.skip(f"FFmpeg here has no encoder {codec}")
    path = tmp_path / f"file.{case.extension}"
    made = plan(case, int(os.environ.get("VATT_SWEEP_SEED", "0")))
    write(path, made)
    if case.video:
        check_pictures(path, made)
    if case.audio:
        check_sound(path, made)
    info = probe(path)
    assert info.has_video == bool(case.video)
    assert info.has_audio == bool(case.audio)
    assert info.duration_seconds == pytest.approx(SECONDS, abs=0.3)


def test_h264_in_asf_is_read_from_its_start_as_its_times_change_after_a_seek(
    tmp_path: Path,
) -> None:
    case = Case("wmv", "libx264", "wmav2")
    made = plan(case, seed=1)
    write(tmp_path / "file.wmv", made)
    check_pictures(tmp_path / "file.wmv", made)
    # the first picture is shown at 0.16 s: before it, there is none
    path, start = tmp_path / "file.wmv", 0.0
    _, coverage = read_frames(
        path, start_seconds=start, num_frames=1, frame_rate=1.0, short_side=24
    )
    assert coverage == 0.0
