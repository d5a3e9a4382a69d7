"""Encrypted media are called so, and not damaged."""

import re
from pathlib import Path
from typing import Any

import av
import pytest
from media_files import Kind, make_file

from vatt import MediaError, probe, read_frames, read_waveform
from vatt.config.options import Reencoding
from vatt.media.decode_whole import decode_whole
from vatt.media.reencode import reencode

ENCRYPTED = r"is encrypted \(DRM\): get it without protection, or leave it out"
CENC = (
    ("encryption_scheme", "cenc-aes-ctr"),
    ("encryption_key", "00112233445566778899aabbccddeeff"),
    ("encryption_kid", "000102030405060708090a0b0c0d0e0f"),
)
FRAGMENTS = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)


def frames_at(source: Any, start_seconds: float) -> Any:
    return read_frames(
        source, start_seconds=start_seconds, num_frames=2, frame_rate=5, short_side=16
    )


def sound_at(source: Any, start_seconds: float) -> Any:
    return read_waveform(source, start_seconds=start_seconds, num_samples=4_000, sample_rate=16_000)


def assert_encrypted(path: Path, *, video: bool = True, audio: bool = True) -> None:
    reads = [probe, decode_whole]
    reads += [lambda source: frames_at(source, 0.0), lambda source: frames_at(source, 1.1)] * video
    reads += [lambda source: sound_at(source, 0.0), lambda source: sound_at(source, 1.1)] * audio
    for read in reads:
        for source in (path, path.read_bytes()):
            with pytest.raises(MediaError, match=ENCRYPTED):
                read(source)
    if video:
        with pytest.raises(MediaError, match=ENCRYPTED):
            reencode(path, path.with_name("fast.mp4"), Reencoding(short_side=16))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("film.mp4", Kind(file_options=CENC)),
        ("fragments.mp4", Kind(file_options=CENC + FRAGMENTS)),
        pytest.param("film.mov", Kind(file_options=CENC), marks=pytest.mark.slow),
        pytest.param("silent.mp4", Kind(audio=None, file_options=CENC), marks=pytest.mark.slow),
        pytest.param("hevc.mp4", Kind(video="libx265", file_options=CENC), marks=pytest.mark.slow),
        ("song.m4a", Kind(video=None, file_options=CENC)),
        pytest.param(
            "song.mp4", Kind(video=None, audio="ac3", file_options=CENC), marks=pytest.mark.slow
        ),
        pytest.param(
            "plain_sound.mov",
            Kind(video=None, audio="pcm_s16le", file_options=CENC),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_common_encryption_is_named(name: str, kind: Kind, tmp_path: Path) -> None:
    make_file(tmp_path / name, kind)
    assert_encrypted(tmp_path / name, video=bool(kind.video), audio=bool(kind.audio))


@pytest.mark.parametrize(("tag", "name"), [(b"drms", "song.m4p"), (b"aavd", "book.aax")])
def test_protection_of_shops_is_named(tag: bytes, name: str, tmp_path: Path) -> None:
    make_file(tmp_path / name.replace(name[-3:], "m4a"), Kind(video=None))
    content = (tmp_path / name.replace(name[-3:], "m4a")).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b"mp4a", tag, 1))
    assert_encrypted(tmp_path / name, video=False)


def element(kind: bytes, content: bytes) -> bytes:
    """An EBML element with a size of eight bytes."""
    return kind + (0x0100_0000_0000_0000 | len(content)).to_bytes(8, "big") + content


def with_content_encryption(content: bytes) -> bytes:
    """A live Matroska file whose tracks are marked as encrypted by AES (RFC 9559, 5.1.4.1.31)."""
    encryption = element(b"\x47\xe1", b"\x05") + element(b"\x47\xe2", bytes(16))
    encoding = (
        element(b"\x50\x31", b"\0")
        + element(b"\x50\x32", b"\1")
        + element(b"\x50\x33", b"\1")
        + element(b"\x50\x35", encryption)
    )
    more = element(b"\x6d\x80", element(b"\x62\x40", encoding))

    def parts(rest: bytes) -> list[tuple[bytes, bytes]]:
        found = []
        while rest:
            length = next(n for n in range(1, 5) if rest[0] >> (8 - n))
            kind, rest = rest[:length], rest[length:]
            length = next(n for n in range(1, 9) if rest[0] >> (8 - n))
            size = int.from_bytes(rest[:length], "big") & ((1 << 7 * length) - 1)
            found.append((kind, rest[length : length + size]))
            rest = rest[length + size :]
        return found

    place = re.search(b"(?<!\x53\xab\x84)\x16\x54\xae\x6b", content).start()  # not its index
    length = next(n for n in range(1, 9) if content[place + 4] >> (8 - n))
    size = int.from_bytes(content[place + 4 : place + 4 + length], "big") & ((1 << 7 * length) - 1)
    first = place + 4 + length
    tracks = b"".join(
        element(kind, inner + more if kind == b"\xae" else inner)
        for kind, inner in parts(content[first : first + size])
        if kind != b"\xbf"  # a check sum
    )
    return content[:place] + element(b"\x16\x54\xae\x6b", tracks) + content[first + size :]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("film.webm", Kind(video="libvpx", audio="libopus", file_options=(("live", "1"),))),
        pytest.param("film.mkv", Kind(file_options=(("live", "1"),)), marks=pytest.mark.slow),
        pytest.param(
            "sound.webm",
            Kind(video=None, audio="libopus", file_options=(("live", "1"),)),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_content_encryption_of_webm_is_named(name: str, kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / name
    make_file(path, kind)
    path.write_bytes(with_content_encryption(path.read_bytes()))
    assert_encrypted(path, video=bool(kind.video))


def scrambled(content: bytes) -> bytes:
    """A transport stream whose packets of sound and pictures are marked and made unreadable."""
    result = bytearray(content)
    for first in range(0, len(result), 188):
        pid = (result[first + 1] & 0x1F) << 8 | result[first + 2]
        if 0x100 <= pid < 0x1000:
            result[first + 3] |= 0xC0
            for place in range(first + 4, first + 188):
                result[place] = result[place] * 73 + place * 31 & 0xFF
    return bytes(result)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("film.ts", Kind()),
        pytest.param("old.ts", Kind(video="mpeg2video", audio="mp2"), marks=pytest.mark.slow),
        ("radio.ts", Kind(video=None, audio="mp2")),
    ],
)
def test_scrambling_of_transport_streams_is_named(name: str, kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / name
    make_file(path, kind)
    path.write_bytes(scrambled(path.read_bytes()))
    assert_encrypted(path, video=bool(kind.video))


def test_damage_of_a_file_that_is_not_encrypted_is_damage(tmp_path: Path) -> None:
    make_file(tmp_path / "film.ts", Kind())
    content = (tmp_path / "film.ts").read_bytes()
    with pytest.raises(MediaError) as caught:
        frames_at(content[: len(content) // 3], 2.5)
    assert not re.search(ENCRYPTED, str(caught.value))
    with av.open(str(tmp_path / "film.ts")) as container:
        assert container.format.name == "mpegts"
