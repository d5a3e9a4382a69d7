"""Reading media: files that come out as expected, sources of every kind, and what a file holds.

The tests named `expected` read folders that hold media files and `expected.json`, which says what a
reader must make of each: one that is made here, and those that $VATT_MEDIA names.
"""

import contextlib
import http.server
import io
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from corpus import made_once
from media_files import (
    FRAME_RATE,
    HEIGHT,
    SMALL_AUDIO,
    SMALL_VIDEO,
    WIDTH,
    decode_sequentially,
    make_folder,
    picture,
)

from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.errors import MediaError
from vatt.media.clip import Clip, probe, read_clip, read_frames, read_waveform
from vatt.media.source import FileRange


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "media", make_folder)


VIDEO = VideoConfig()  # 32 frames at 10 fps, as the expected.json files mean it
AUDIO = AudioConfig()  # 3.2 s of 48 kHz

# The same form as in the folders of $VATT_MEDIA. AAC starts 1,024 samples before its first sound.
OWN_EXPECTED: dict[str, Any] = {
    "plain.mp4": {
        "clips": [{"start_seconds": 0.0, "video": "ok", "audio": "ok", "audio_coverage": 0.9375}],
        "bit_equal_frames": True,
        "width_height": [WIDTH, HEIGHT],
    },
    "uneven.mp4": {
        "clips": [{"start_seconds": 1.3, "video": "ok", "audio": "ok", "audio_coverage": 0.53}],
        "bit_equal_frames": True,
    },
    "late_sound.mp4": {
        "clips": [
            {"start_seconds": 0.0, "video": "ok", "audio": "ok", "audio_coverage": 0.6317},
            {"start_seconds": 1.5, "video": "ok", "audio": "ok", "audio_coverage": 0.4688},
        ]
    },
    "sound.m4a": {
        "clips": [{"start_seconds": 1.0, "video": "absent", "audio": "ok", "audio_coverage": 0.625}]
    },
    "silent.mp4": {
        "clips": [
            {"start_seconds": 1.0, "video": "ok", "audio": "absent", "audio_coverage": 0.0},
            {"start_seconds": 3.0, "video": "error"},
        ]
    },
    "turned.mp4": {
        "clips": [{"start_seconds": 1.0, "video": "ok", "audio": "ok"}],
        "width_height": [HEIGHT, WIDTH],
    },
    "cut_off.mp4": {
        "clips": [
            {"start_seconds": 0.0, "video": "error"},
            {"start_seconds": 2.0, "video": "error"},
        ]
    },
    "headless.mp4": {"open": "error"},
    "noise.mp4": {"open": "error"},
    "empty.mp4": {"open": "error"},
}


def expected_cases() -> list[Any]:
    """One case a file: of the folder made here, and of those that $VATT_MEDIA names."""
    cases = [pytest.param(None, name, wanted, id=name) for name, wanted in OWN_EXPECTED.items()]
    for folder in filter(None, os.environ.get("VATT_MEDIA", "").split(os.pathsep)):
        for name, wanted in json.loads((Path(folder) / "expected.json").read_text()).items():
            if not name.startswith("_"):  # a comment
                case = pytest.param(Path(folder), name, wanted, id=f"{Path(folder).name}/{name}")
                cases.append(case)
    return cases


@pytest.mark.parametrize(("folder", "name", "expected"), expected_cases())
def test_a_file_comes_out_as_expected(
    folder: Path | None, name: str, expected: dict[str, Any], media: Path
) -> None:
    folder = folder or media
    path = folder / name
    if expected.get("open") == "error":
        assert_refused(path, lambda: probe(path))
        assert_refused(path, lambda: read_whole_clip(path, 0.0))
        return
    if "width_height" in expected:
        info = probe(path)
        assert [info.width, info.height] == expected["width_height"]
    for clip in expected["clips"]:
        check_clip(path, clip, expected)


def check_clip(path: Path, wanted: dict[str, Any], expected: dict[str, Any]) -> None:
    start_seconds = wanted["start_seconds"]
    if "error" in (wanted.get("video"), wanted.get("audio")):
        assert_refused(path, lambda: read_whole_clip(path, start_seconds))
        return
    clip = read_whole_clip(path, start_seconds)
    assert (clip.video is None) == (wanted["video"] == "absent")
    assert (clip.audio is None) == (wanted["audio"] == "absent")
    for key in ("audio_coverage", "video_coverage"):
        if key in wanted:
            assert getattr(clip, key) == pytest.approx(wanted[key], abs=0.01)
    if clip.audio is not None:
        assert clip.audio.shape == (AUDIO.num_samples,)
        assert clip.audio.isfinite().all()
        silent = (clip.audio == 0).float().mean().item()
        assert silent >= 1 - clip.audio_coverage - 0.01, "what the file does not give is zero"
    if clip.video is not None:
        assert clip.video.dtype == torch.uint8
        assert len(clip.video) == VIDEO.num_frames
        if "width_height" in expected:
            width, height = expected["width_height"]
            assert (clip.video.shape[1] < clip.video.shape[2]) == (height < width)
        if expected.get("bit_equal_frames"):
            sequence = decode_sequentially(path, VIDEO.image_size)
            assert torch.equal(clip.video, sequence.at(start_seconds, VIDEO.num_frames, 10.0))


def read_whole_clip(path: Path, start_seconds: float) -> Clip:
    return read_clip(path, start_seconds=start_seconds, video=VIDEO, audio=AUDIO)


def assert_refused(path: Path, read: Callable[[], Any]) -> None:
    """One clear error that names the file, the reason and what to do."""
    with pytest.raises(MediaError) as caught:
        read()
    assert caught.value.path == str(path)
    assert path.name in str(caught.value)
    assert len(caught.value.reason.split()) > 5, "a reason is a sentence"


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and parts of files, quietly."""

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """The bytes that were asked for."""
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        with contextlib.suppress(OSError):  # the reader may have seen enough
            self.wfile.write(content[first:])


@pytest.fixture
def server(media: Path) -> Iterator[str]:
    def handler(*arguments: Any) -> RangeHandler:
        return RangeHandler(*arguments, directory=str(media))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_every_kind_of_source_gives_the_same_clip(media: Path, tmp_path: Path, server: str) -> None:
    content = (media / "plain.mp4").read_bytes()
    shard = tmp_path / "shard"
    shard.write_bytes(b"before" * 100 + content + b"after" * 100)
    for name in ("a:b.mp4", "100%03d.mp4", "http.mp4"):
        (tmp_path / name).write_bytes(content)
    with (media / "plain.mp4").open("rb") as file:
        sources: list[Any] = [
            str(media / "plain.mp4"),
            media / "plain.mp4",
            content,
            io.BytesIO(content),
            file,
            FileRange(str(shard), 600, len(content)),
            tmp_path / "a:b.mp4",
            tmp_path / "100%03d.mp4",
            tmp_path / "http.mp4",
            f"{server}/plain.mp4",
        ]
        clips = [
            read_clip(source, start_seconds=1.0, video=SMALL_VIDEO, audio=SMALL_AUDIO)
            for source in sources
        ]
        infos = [probe(source) for source in sources]
        assert not file.closed, "what the caller opened stays open"
    for clip in clips:
        assert clip.video is not None
        assert clip.audio is not None
        assert torch.equal(clip.video, clips[0].video)
        assert torch.equal(clip.audio, clips[0].audio)
    assert len(set(infos)) == 1


def test_a_source_that_cannot_seek_is_read_from_its_start(media: Path) -> None:
    class Stream:
        def __init__(self, content: bytes) -> None:
            self.read = io.BytesIO(content).read

    content = (media / "faststart.mp4").read_bytes()
    request: dict[str, Any] = {
        "start_seconds": 2.0,
        "num_frames": 4,
        "frame_rate": 5.0,
        "short_side": 32,
    }
    streamed, _ = read_frames(Stream(content), **request)
    assert torch.equal(streamed, read_frames(content, **request)[0])


def test_a_relative_path_is_read_whatever_its_name(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain.mp4", "a:b.mp4", "concat:c.mp4"):
        Path(name).write_bytes((media / "plain.mp4").read_bytes())
        assert probe(name).has_video


def test_a_missing_file_a_folder_and_a_dead_address_are_named(media: Path, server: str) -> None:
    with pytest.raises(MediaError, match="nowhere.mp4: there is no such file"):
        probe("nowhere.mp4")
    with pytest.raises(MediaError, match="is a folder"):
        probe(media)
    with pytest.raises(MediaError, match="404"):
        probe(f"{server}/nowhere.mp4")
    with pytest.raises(MediaError, match="no such file"):
        read_clip(FileRange("nowhere.tar", 0, 10), start_seconds=0, video=SMALL_VIDEO, audio=None)
    with pytest.raises(TypeError, match="FileRange"):
        probe(3)  # type: ignore[arg-type]


def test_bytes_cannot_make_ffmpeg_open_files(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard from the network must not read the user's disk."""
    monkeypatch.chdir(media)
    for text in (
        "ffconcat version 1.0\nfile plain.mp4\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile://{media}/late_start.ts\n",
        f"ffconcat version 1.0\nfile {media}/plain.mp4\n",
    ):
        with pytest.raises(MediaError):
            probe(text.encode())


def test_a_window_ends_where_it_ends(media: Path, tmp_path: Path) -> None:
    content = (media / "plain.mp4").read_bytes()
    shard = tmp_path / "shard"
    shard.write_bytes(content + content)
    with pytest.raises(MediaError):
        probe(FileRange(str(shard), 0, len(content) // 2))
    with pytest.raises(ValueError, match="offset"):
        FileRange(str(shard), -1, 5)


def test_a_file_without_what_is_asked_for_says_so(media: Path) -> None:
    with pytest.raises(MediaError, match="has no sound"):
        read_waveform(media / "silent.mp4", start_seconds=0, num_samples=100, sample_rate=16_000)
    with pytest.raises(MediaError, match="has no picture"):
        read_frames(
            media / "sound.m4a", start_seconds=0, num_frames=1, frame_rate=5.0, short_side=32
        )
    with pytest.raises(ValueError, match="video or audio"):
        read_clip(media / "plain.mp4", start_seconds=0, video=None, audio=None)


def test_a_modality_that_is_not_asked_for_is_not_read(media: Path) -> None:
    clip = read_clip(media / "plain.mp4", start_seconds=0, video=None, audio=SMALL_AUDIO)
    assert clip.video is None
    assert clip.video_coverage == 0
    assert clip.audio_coverage == 1


def test_a_cover_picture_is_no_video(media: Path, tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(media / "sound.mp3")) as source, av.open(str(path), "w") as out:
        sound = out.add_stream_from_template(source.streams.audio[0])
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture(0), format="rgb24")
        for packet in [*cover.encode(frame), *cover.encode(None)]:
            out.mux(packet)
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = sound
                out.mux(packet)
    info = probe(path)
    assert not info.has_video
    assert info.has_audio
    assert read_clip(path, start_seconds=0, video=SMALL_VIDEO, audio=SMALL_AUDIO).video is None


def test_a_title_that_is_not_utf_8_does_no_harm(tmp_path: Path) -> None:
    sound = bytes(2 * 48_000)  # one second of 16-bit silence
    form = struct.pack("<HHIIHH", 1, 1, 48_000, 96_000, 2, 16)
    title = b"INFOINAM" + struct.pack("<I", 6) + "Café".encode("latin-1") + b"\0\0"
    chunks = [b"WAVE"]
    for name, content in ((b"fmt ", form), (b"LIST", title), (b"data", sound)):
        chunks.append(name + struct.pack("<I", len(content)) + content)
    content = b"".join(chunks)
    path = tmp_path / "cafe.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    assert probe(path).duration_seconds == 1.0


def test_probe_tells_what_a_file_holds(media: Path) -> None:
    info = probe(media / "surround.mp4")
    assert info.duration_seconds == pytest.approx(3.0, abs=0.05)
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    assert info.frame_rate == pytest.approx(FRAME_RATE)
    assert (info.sample_rate, info.num_channels) == (48_000, 6)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")
    sound = probe(media / "sound.flac")
    assert (sound.has_video, sound.has_audio, sound.width) == (False, True, None)
    assert probe(media / "turned.mp4").width == HEIGHT
    # animated PNG says nowhere how long it is
    assert probe(media / "animation.apng").duration_seconds == pytest.approx(1.0, abs=0.05)
