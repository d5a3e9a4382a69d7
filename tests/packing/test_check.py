"""The check that decodes every sample of finished shards."""

import csv
import re
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import av
import pytest
from media_files import gif, jpeg, png, write_noise_clip

from vatt.errors import ShardError
from vatt.packing.check import check_shards
from vatt.shards.record import Segment
from vatt.shards.writer import ShardWriter


def check(folder: Path, **options):
    return check_shards(folder, show_progress=False, **options)


@pytest.fixture
def checked(tmp_path) -> Path:
    """Shards with two good clips, and one each of the ways in which a clip is unusable."""
    write_noise_clip(tmp_path / "good.mp4")
    write_noise_clip(tmp_path / "silent.mp4", silent=True)
    good = (tmp_path / "good.mp4").read_bytes()
    damaged = bytearray(good)
    start = good.index(b"mdat") + len(good) // 3
    damaged[start : start + 400] = b"\xff" * 400
    folder = tmp_path / "shards"
    folder.mkdir()
    with ShardWriter(folder / "00000.tar") as shard:
        shard.add("good", good, "mp4", "a caption")
        shard.add("damaged", bytes(damaged), "mp4")
        shard.add("cut", good[: len(good) // 2], "mp4")
        shard.add("garbage", b"garbage" * 100, "mp4")
    with ShardWriter(folder / "00002.tar") as shard:
        shard.add("silent", tmp_path / "silent.mp4", "mp4")
        shard.add("no_media", None, "", "only text")
    (folder / "00001.tar").write_bytes((folder / "00000.tar").read_bytes()[:2000])
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_check_finds_every_fault_and_nothing_else(checked, num_workers):
    report = check(checked, num_workers=num_workers)
    assert [(row.shard, row.key) for row in report.rows] == [
        *(("00000.tar", key) for key in ("good", "damaged", "cut", "garbage")),
        ("00001.tar", ""),
        ("00002.tar", "silent"),
        ("00002.tar", "no_media"),
    ]
    assert [row.key for row in report.faults] == ["damaged", "cut", "garbage", "", "no_media"]
    good, *_, silent, _ = report.rows
    assert (good.num_frames, good.num_captions, good.sample_rate) == (20, 1, 16_000)
    assert (good.width, good.height) == (48, 32)
    assert good.duration_seconds == pytest.approx(1.0, abs=0.1)
    assert (silent.num_frames, silent.sample_rate) == (20, None)
    assert good.captioned_seconds == good.duration_seconds


def test_report_of_a_check_reads_well_and_is_a_csv(checked, tmp_path):
    report = check(checked)
    lines = str(report).splitlines()
    assert "6 samples" in lines[0]
    assert "5 faults" in lines[0]
    assert any("fault: 00000.tar:garbage: " in line for line in lines)
    assert any("00001.tar is truncated" in line for line in lines)
    report.write_csv(tmp_path / "check.csv")
    with (tmp_path / "check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [row.key for row in report.rows]
    assert [row["fault"] for row in rows] == [row.fault for row in report.rows]
    assert rows[0]["num_frames"] == "20"


def test_report_shows_lengths_rates_and_what_captions_cover(tmp_path):
    for name, options in (("a", {}), ("b", {"num_frames": 60, "silent": True}), ("c", {})):
        write_noise_clip(tmp_path / f"{name}.mp4", **options)
    captions = {
        "a": [Segment(0.1, 0.4, "x"), Segment(0.2, 0.5, "y"), Segment(0.8, 9.0, "z")],
        "b": [Segment(2.5, 2.6, "x"), Segment(30.0, 31.0, "late"), Segment(-2.0, -1.0, "early")],
        "c": [],
    }
    with ShardWriter(tmp_path / "00000.tar") as shard:
        for name, segments in captions.items():
            shard.add(name, tmp_path / f"{name}.mp4", "mp4", segments=segments)
    report = check(tmp_path)
    a, b, _ = report.rows
    assert a.captioned_seconds == pytest.approx(0.4 + a.duration_seconds - 0.8)
    assert (b.captioned_seconds, b.num_captions) == (pytest.approx(0.1), 3)
    assert [row.num_outside for row in report.rows] == [0, 2, 0]
    covered = (a.captioned_seconds + 0.1) / (a.duration_seconds + b.duration_seconds)
    assert [line.strip() for line in str(report).splitlines()] == [
        f"{tmp_path}: 3 samples in 1 shards, 0.00 hours, 0 faults",
        f"length: {a.duration_seconds:.1f} to 3.0 s, median {a.duration_seconds:.1f} s",
        "picture: 3 × 48×32, 3 × 20 frames/s",
        "sound: 2 × 16000 Hz, 1 × none",
        f"captions: 2 of 3 samples (67%), 3.0 each, during {covered:.0%} of their time; "
        "2 lie outside of their media",
    ]


def test_a_sample_that_takes_too_long_is_a_fault_and_not_waited_for(tmp_path):
    write_noise_clip(tmp_path / "a.mp4", num_frames=600)
    with ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add("long", tmp_path / "a.mp4", "mp4")
    report = check(tmp_path, num_workers=1, limit_seconds=0.002)
    assert [row.fault for row in report.faults] == ["gave no answer within 0.002 s"]
    assert report.faults[0].key == "long"


def test_check_of_an_incomplete_file_says_so(tmp_path):
    write_noise_clip(tmp_path / "a.mp4", num_frames=100)
    whole, packet_ends = with_header_first(tmp_path / "a.mp4")
    cut = whole[: packet_ends[len(packet_ends) // 2]]  # no packet is damaged, half of them are lost
    with ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add("whole", whole, "mp4")
        shard.add("cut", cut, "mp4")
    whole_row, cut_row = check(tmp_path).rows
    assert whole_row.fault == ""
    assert "is incomplete: it says it ends at 5.0" in cut_row.fault


def with_header_first(path: Path) -> tuple[bytes, list[int]]:
    """The file as it is made for streaming, and where its packets end."""
    remuxed = path.with_name("header_first.mp4")
    with (
        av.open(path) as source,
        av.open(remuxed, "w", options={"movflags": "faststart"}) as target,
    ):
        streams = [target.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    with av.open(remuxed) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux() if packet.size)
    return remuxed.read_bytes(), ends


def mp4_with_compressed_header(claimed_bytes: int) -> bytes:
    """A header that claims what it unpacks to (the boxes `cmov`, `dcom`, `cmvd` of QuickTime)."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    packed = struct.pack(">I", claimed_bytes) + zlib.compress(bytes(1 << 20))
    header = box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", packed))
    return box(b"ftyp", b"isom\0\0\0\0isom") + box(b"moov", header)


HOSTILE = {
    "wide.png": (png(100_000, 1), "claims a picture of 100000×1 pixels; at most 16384 a side"),
    "huge.png": (png(100_000, 100_000), "larger than 134217728 pixels"),
    "large.png": (png(16_000, 16_000), "larger than 134217728 pixels"),
    "animation.gif": (gif(65_535, 65_535), "larger than 134217728 pixels"),
    "photo.jpg": (jpeg(65_500, 65_500), "larger than 134217728 pixels"),
    "bomb.mp4": (mp4_with_compressed_header((1 << 32) - 1), "is damaged|has no picture"),
}


def test_hostile_media_are_faults_and_fill_no_memory(tmp_path):
    with ShardWriter(tmp_path / "00000.tar") as shard:
        for name, (content, _) in HOSTILE.items():
            shard.add(name.split(".")[0], content, name.split(".")[1])
    program = textwrap.dedent("""
        import resource, sys
        import vatt.media.clip
        from vatt.packing.check import check_shards
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for row in check_shards(sys.argv[1], show_progress=False).rows:
            print(row.fault)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    command = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *faults, kilobytes = done.stdout.splitlines()
    for fault, (_, reason) in zip(faults, HOSTILE.values(), strict=True):
        assert re.search(reason, fault)
    assert int(kilobytes) < 200_000
    assert [row.fault for row in check(tmp_path, num_workers=1).rows] == faults


def test_the_memory_of_a_process_that_checks_is_limited():
    program = textwrap.dedent("""
        from vatt.media.reader_process import MEMORY_BYTES, prepare_worker
        prepare_worker()
        try:
            bytearray(MEMORY_BYTES)
        except MemoryError:
            print("limited")
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "limited\n", done.stderr


def test_check_of_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ShardError, match="no shard folder"):
        check(tmp_path / "gone")
