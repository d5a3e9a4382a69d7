"""Clips at random starts are what FFmpeg's decode from a file's first packet gives there."""

import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from sequential import decoded, pictures, tune

from vatt import MediaError, probe, read_frames, read_waveform

SHARED = os.environ.get("VATT_SHARED")
CLIP_SECONDS = 0.3  # where a decoder that has not settled is heard

# file name: codec, sample rate, bits per second; whether its decoder's state dies away, or stays
SOUNDS: dict[str, tuple[str, int, int]] = {
    "voice.mp3": ("libmp3lame", 8_000, 8_000),
    "speech.mp3": ("libmp3lame", 22_050, 16_000),
    "radio.mp3": ("libmp3lame", 32_000, 40_000),
    "speech.avi": ("libmp3lame", 22_050, 24_000),
    "speech.mkv": ("libmp3lame", 44_100, 32_000),
    "voice.opus": ("libopus", 48_000, 10_000),
    "voice.webm": ("libopus", 48_000, 16_000),
    "voice.mka": ("libopus", 48_000, 24_000),
    "phone.3gp": ("libopencore_amrnb", 8_000, 12_200),
    "phone.amr": ("libopencore_amrnb", 8_000, 6_700),
    "sound.aac": ("aac", 44_100, 64_000),
    "sound.m4a": ("aac", 32_000, 64_000),
    "sound.ac3": ("ac3", 48_000, 96_000),
    "sound.eac3": ("eac3", 48_000, 96_000),
    "sound.mp2": ("mp2", 24_000, 64_000),
    "sound.wma": ("wmav2", 44_100, 64_000),
    "sound.flv": ("nellymoser", 22_050, 0),
    "sound.ogg": ("vorbis", 44_100, 0),
    "sound.flac": ("flac", 44_100, 0),
    "sound.tta": ("tta", 44_100, 0),
    "sound.wv": ("wavpack", 44_100, 0),
    "sound.mov": ("alac", 44_100, 0),
    "sound.wav": ("adpcm_ima_wav", 22_050, 0),
    "sound.mp4": ("ac3", 44_100, 96_000),
    "sound.ts": ("mp2", 48_000, 64_000),
}
SHORT = ("voice.mp3", "speech.avi", "voice.opus", "phone.3gp", "sound.aac", "sound.wav")


def write_sound(path: Path, codec: str, rate: int, bits: int, *, seconds: float = 6.0) -> Path:
    """Encodes a tune of one channel; two for a codec that takes no fewer."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg does not encode {codec}")
    samples = tune(round(seconds * rate), rate, seed=len(path.name))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        if bits:
            stream.bit_rate = bits
        if codec == "vorbis":  # FFmpeg's own encoder
            stream.layout = "stereo"
            stream.codec_context.options = {"strict": "experimental"}
        resampler = av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size or 1024)
        for start in range(0, len(samples), 4096):
            frame = AudioFrame.from_ndarray(samples[None, start : start + 4096], "fltp", "mono")
            frame.sample_rate, frame.pts = rate, start
            frame.time_base = Fraction(1, rate)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def difference(path: Path, start_seconds: float, truth: tuple[np.ndarray, int, float]) -> float:
    """Of a clip from the same sound decoded in sequence, relative to its level there."""
    samples, rate, begin = truth
    clip, coverage = read_waveform(
        path,
        start_seconds=start_seconds,
        num_samples=round(CLIP_SECONDS * rate),
        sample_rate=rate,
    )
    assert coverage == 1.0
    first = round((start_seconds - begin) * rate)
    margin = round(0.002 * rate)  # containers round times to 1 ms
    shifts = range(max(0, first - margin), first + margin + 1)
    level = np.sqrt(np.mean(samples**2))
    found = [samples[shift : shift + len(clip)] - clip.numpy() for shift in shifts]
    return float(min(np.sqrt(np.mean(part**2)) for part in found) / level)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in SOUNDS]
)
def test_sound_at_any_start_is_that_of_a_sequential_decode(name: str, tmp_path: Path) -> None:
    path = write_sound(tmp_path / name, *SOUNDS[name])
    truth = decoded(path)
    starts = np.random.default_rng(1).uniform(0.1, 5.5, 12)
    # these decoders fill bands and rounded-off bits with noise, which no two decodes share
    bound = 0.1 if SOUNDS[name][0] in ("aac", "ac3", "eac3") else 1e-2
    assert max(difference(path, float(start), truth) for start in starts) < bound
    assert probe(path).duration_seconds == pytest.approx(len(truth[0]) / truth[1], abs=0.1)


@pytest.mark.skipif(SHARED is None, reason="VATT_SHARED names no folder with recorded faults")
@pytest.mark.parametrize(
    "name",
    [
        *("f03_mp3_bit_reservoir/speech_8k.mp3", "f03_mp3_bit_reservoir/32k.mp3"),
        *("f04_frames_without_time_dropped/ten_frames_a_packet.3gp", "f08_opus_decoder_state/"),
        *(
            "f06_last_packet_incomplete/trailing_bytes.mp3",
            "f11_sound_key_packets/real_xhe_aac.mp4",
        ),
        *("f05_undecodable_sound_crashes/second_track_undecodable.mov", "f02_duration_guessed/"),
        "real/mp4parser_MOV00006.3gp",
    ],
)
def test_recorded_faults_of_sound_are_read_as_a_sequential_decode_does(name: str) -> None:
    place = Path(str(SHARED)) / "faults" / name
    for path in sorted(place.glob("*.[!t]*")) if place.is_dir() else [place]:
        truth = decoded(path)
        end = len(truth[0]) / truth[1]
        starts = np.random.default_rng(2).uniform(0.1, end - 0.5, 8)
        assert max(difference(path, float(start), truth) for start in starts) < 1e-2, path
        assert probe(path).duration_seconds == pytest.approx(end, abs=1.4)  # a pre-skip counts


# --- lengths that no header tells, and ends of recordings ---


@pytest.mark.parametrize("name", ["quiet.aac", "quiet.mp3", "quiet.ac3"])
def test_length_is_counted_where_a_header_would_guess_it(name: str, tmp_path: Path) -> None:
    # the first bit rate is another than that of the rest
    codec, rate = {"aac": ("aac", 44_100), "mp3": ("libmp3lame", 44_100), "ac3": ("ac3", 48_000)}[
        name.split(".")[1]
    ]
    parts = [
        write_sound(tmp_path / f"{bits}-{name}", codec, rate, bits, seconds=4.0).read_bytes()
        for bits in (64_000, 192_000)
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(parts))
    samples, rate, _ = decoded(path)
    assert probe(path).duration_seconds == pytest.approx(len(samples) / rate, abs=0.15)
    with pytest.raises(MediaError, match=r"ends (at \S+ s, )?before 9.00 s"):
        read_waveform(path, start_seconds=9.0, num_samples=1_000, sample_rate=16_000)
    _, coverage = read_waveform(path, start_seconds=7.0, num_samples=8_000, sample_rate=16_000)
    assert coverage == 1.0


def wav_with_size(samples: np.ndarray, rate: int, size: int) -> bytes:
    """A WAV file of 16 bits whose header tells another size than it has."""
    data = (samples * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    head = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", size) + data


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0, 1 << 20])
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_wav_of_unknown_size_is_read_to_its_last_sample(size: int, rate: int) -> None:
    samples = tune(round(1.23 * rate), rate)
    content = wav_with_size(samples, rate, size)
    clip, coverage = read_waveform(
        content, start_seconds=1.0, num_samples=rate // 2, sample_rate=rate
    )
    assert coverage == pytest.approx(0.46, abs=1e-3)
    np.testing.assert_allclose(clip[: round(0.23 * rate)], samples[rate:], atol=1e-4)


@pytest.mark.parametrize("tail", [b"\n", b"\0" * 777, b"\xff" * 3000])
@pytest.mark.parametrize("name", ["speech.mp3", "sound.aac"])
def test_what_follows_the_last_frame_of_sound_is_left_out(
    name: str, tail: bytes, tmp_path: Path
) -> None:
    path = write_sound(tmp_path / name, *SOUNDS[name])
    path.write_bytes(path.read_bytes() + tail)
    _, coverage = read_waveform(path, start_seconds=5.5, num_samples=16_000, sample_rate=16_000)
    assert 0.4 < coverage < 0.7


def test_a_transport_stream_cut_anywhere_is_read_up_to_its_last_whole_picture(
    tmp_path: Path,
) -> None:
    path = write_film(tmp_path / "film.ts", "mpeg2video", sound=True)
    content, num_packets = path.read_bytes(), path.stat().st_size // 188
    for number in range(num_packets - 40, num_packets, 7):
        cut = content[: 188 * number]
        _, coverage = read_frames(
            cut, start_seconds=3.0, num_frames=2, frame_rate=5.0, short_side=16
        )
        assert coverage == 1.0
        end = probe(cut).duration_seconds
        read_waveform(cut, start_seconds=end - 0.5, num_samples=16_000, sample_rate=16_000)


# --- pictures ---


def write_film(
    path: Path, codec: str, *, sound: bool = False, gop: int = 12, rate: int = 10, **file: str
) -> Path:
    """Six seconds of noise that changes, 64 × 48, and maybe a tune."""
    random = np.random.default_rng(len(path.name))
    with av.open(str(path), "w", options=file) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        stream.codec_context.max_b_frames = 0
        if sound:
            audio = container.add_stream("mp2", rate=48_000, layout="mono")
            samples = tune(6 * 48_000, 48_000)
        for place in range(6 * rate):
            picture = np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1)))
            frame = VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")
            frame.pts, frame.time_base = place, Fraction(1, rate)
            container.mux(stream.encode(frame))
            if sound:
                size = 48_000 // rate
                piece = samples[None, place * size : (place + 1) * size]
                part = AudioFrame.from_ndarray(
                    (piece * 32767).astype(np.int16), format="s16", layout="mono"
                )
                part.sample_rate, part.pts = 48_000, place * size
                container.mux(audio.encode(part))
        container.mux(stream.encode(None))
        if sound:
            container.mux(audio.encode(None))
    return path


def assert_pictures_are_those(path: Path, starts: Any) -> None:
    truth = pictures(path)
    for start in starts:
        clip, _ = read_frames(
            path,
            start_seconds=float(start),
            num_frames=1,
            frame_rate=1.0,
            size_rule=lambda _width, _height: (32, 24),
        )
        shown = [picture for time, picture in truth if time <= start + 1e-6][-1]
        np.testing.assert_array_equal(clip[0].numpy(), shown, err_msg=f"{path.name} at {start}")


@pytest.mark.parametrize(("codec", "gop"), [("libx264", 1), ("mjpeg", 1), ("mpeg4", 1)])
def test_fragments_whose_header_tells_of_one_picture_are_no_still(
    codec: str, gop: int, tmp_path: Path
) -> None:
    path = write_film(tmp_path / "film.mp4", codec, gop=gop, movflags="frag_keyframe")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 1
    assert probe(path).duration_seconds == pytest.approx(6.0, abs=0.11)
    assert_pictures_are_those(path, (0.05, 2.05, 4.45, 5.85))
    with pytest.raises(MediaError, match="choose an earlier start"):
        read_frames(path, start_seconds=10.0, num_frames=1, frame_rate=1.0, short_side=16)


def with_false_key_frames(content: bytes, places: list[int]) -> bytes:
    """An mp4 file whose table of sync samples (stss) names other pictures."""
    table = content.index(b"stss") + 8
    (number,) = struct.unpack(">I", content[table : table + 4])
    assert number == len(places)
    return (
        content[: table + 4]
        + struct.pack(f">{number}I", *places)
        + content[table + 4 + 4 * number :]
    )


@pytest.mark.parametrize(
    ("codec", "name"), [("mpeg4", "film.mp4"), ("mpeg4", "film.mov"), ("h263", "film.3gp")]
)
def test_pictures_are_whole_where_a_container_marks_the_wrong_ones(
    codec: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    random = np.random.default_rng(0)
    scene = np.kron(random.integers(0, 255, (12, 16, 3)), np.ones((8, 8, 1)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"sc_threshold": "1000000000"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.gop_size = 12
        for place in range(60):
            picture = np.roll(scene, place, axis=1)
            frame = VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.write_bytes(with_false_key_frames(path.read_bytes(), [1, 17, 29, 41, 53]))
    assert_pictures_are_those(path, np.arange(0.05, 6, 0.25))


def with_comment_at_end(content: bytes) -> bytes:
    """A GIF with a graphic control extension and a comment after its last picture."""
    assert content.endswith(b";")
    return content[:-1] + b"\x21\xf9\x04\x00\x0a\x00\x00\x00" + b"\x21\xfe\x03end\x00" + b";"


@pytest.mark.parametrize("num_frames", [2, 5, 9])
def test_a_packet_of_a_gif_without_a_picture_is_none(num_frames: int, tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for place in range(num_frames):
            level = np.full((48, 64, 3), 20 * place, np.uint8)
            frame = VideoFrame.from_ndarray(level, "rgb24").reformat(format="rgb8")
            frame.pts, frame.time_base = place, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.write_bytes(with_comment_at_end(path.read_bytes()))
    assert_pictures_are_those(path, [0.0, 0.1 * num_frames - 0.05])


def test_slides_of_a_transport_stream_are_seen_from_any_start(tmp_path: Path) -> None:
    # B-frames and a picture in five seconds: decoding begins long before the first is shown
    path = tmp_path / "slides.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1, 5), options={"bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for place in range(5):
            frame = VideoFrame.from_ndarray(np.full((48, 64, 3), 50 * place, np.uint8), "rgb24")
            frame.pts, frame.time_base = place, Fraction(5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_pictures_are_those(path, np.arange(0.02, 4, 0.2))


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="VATT_SHARED names no folder with recorded faults")
@pytest.mark.parametrize("name", ["imageio_cockatoo.mp4", "mp4parser_MOV00006.3gp"])
def test_recorded_films_are_read_as_a_sequential_decode_does(name: str) -> None:
    path = Path(str(SHARED)) / "faults" / "real" / name
    end = pictures(path)[-1][0]
    assert_pictures_are_those(path, np.random.default_rng(3).uniform(0, end, 20))


# --- streams that cannot be decoded, and values that are no sound ---


def unknown_wav(bits: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, 8_000, 8_000 * bits // 8, bits // 8, bits)
    data = bytes(8_000)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16)
    return head + form + b"data" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize("bits", [36, 45, 53])
def test_sound_without_a_decoder_is_refused_by_a_sentence(bits: int) -> None:
    for read in (
        probe,
        lambda source: read_waveform(source, start_seconds=0, num_samples=9, sample_rate=9),
    ):
        with pytest.raises(MediaError, match="its audio is in a format that FFmpeg here does not"):
            read(unknown_wav(bits))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
def test_sound_that_is_not_finite_is_refused_where_it_is(
    value: float, codec: str, tmp_path: Path
) -> None:
    samples = tune(16_000, 8_000)
    samples[4_000] = value
    kind = {"pcm_f32le": (np.float32, 32), "pcm_f64le": (np.float64, 64)}[codec]
    data = samples.astype(kind[0]).tobytes()
    form = struct.pack("<HHIIHH", 3, 1, 8_000, 8_000 * kind[1] // 8, kind[1] // 8, kind[1])
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    content = head + b"data" + struct.pack("<I", len(data)) + data
    with pytest.raises(MediaError, match=r"not finite at 0\.(49|50) s"):
        read_waveform(content, start_seconds=0.0, num_samples=16_000, sample_rate=16_000)
    clip, _ = read_waveform(content, start_seconds=1.0, num_samples=16_000, sample_rate=16_000)
    assert clip.isfinite().all()


@pytest.mark.parametrize("num_channels", [9, 11, 13])
def test_channels_that_no_mix_is_known_for_count_the_same(num_channels: int) -> None:
    samples = np.stack([tune(8_000, 8_000, seed) for seed in range(num_channels)], axis=1)
    data = (samples * 32767).astype("<i2").tobytes()
    size = 2 * num_channels
    form = struct.pack("<HHIIHH", 1, num_channels, 8_000, 8_000 * size, size, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    content = head + b"data" + struct.pack("<I", len(data)) + data
    clip, coverage = read_waveform(content, start_seconds=0.0, num_samples=8_000, sample_rate=8_000)
    assert coverage == 1.0
    np.testing.assert_allclose(clip, samples.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050])
def test_part_of_a_clip_is_the_clip_that_is_asked_for_alone(rate: int) -> None:
    content = wav_with_size(tune(2 * rate, rate), rate, 4 * rate)
    whole, _ = read_waveform(content, start_seconds=0.0, num_samples=32_000, sample_rate=16_000)
    for first in (4_000, 5_920, 11_201, 12_345):
        part, _ = read_waveform(
            content, start_seconds=first / 16_000, num_samples=3_000, sample_rate=16_000
        )
        np.testing.assert_allclose(part, whole[first : first + 3_000], atol=2e-3)


@pytest.mark.parametrize("start", [5.0, 40_000.0])
def test_times_in_messages_count_from_the_start_of_the_file(start: float, tmp_path: Path) -> None:
    path = tmp_path / "late.ts"
    with av.open(str(path), "w", options={"mpegts_copyts": "1"}) as container:
        stream = container.add_stream("mp2", rate=48_000, layout="mono")
        samples = (tune(4 * 48_000, 48_000) * 32767).astype(np.int16)[None]
        for place in range(0, samples.shape[1], 1152):
            part = AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, place : place + 1152]), format="s16", layout="mono"
            )
            part.sample_rate, part.pts = 48_000, place + round(start * 48_000)
            part.time_base = Fraction(1, 48_000)
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    middle = len(content) // 188 // 2 * 188
    del content[middle : middle + 188]
    with pytest.raises(MediaError, match=r"its audio is (incomplete|damaged) at [12]\.\d\d s"):
        read_waveform(bytes(content), start_seconds=0.5, num_samples=48_000, sample_rate=16_000)
