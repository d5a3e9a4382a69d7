"""Captions in the forms of HowTo100M: one JSON of all videos, or a csv a video."""

import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vatt.errors import ShardError
from vatt.packing import howto100m
from vatt.packing.build import build_shards
from vatt.packing.howto100m import VideoJson, is_howto100m
from vatt.shards.record import Segment
from vatt.shards.shard_set import ShardSet

SPOKEN = {"start": [0.4, 2, 2.5], "end": [4.2, 5.0, 3], "text": ["now chop", "the", "onions"]}
SEGMENTS = (Segment(0.4, 4.2, "now chop"), Segment(2.0, 5.0, "the"), Segment(2.5, 3.0, "onions"))


def build(source: Path, captions: Path, **options):
    out = source.parent / "out"
    options |= {"check_media": False, "show_progress": False}
    return build_shards(source, out, captions=captions, **options)


@pytest.fixture
def media(tmp_path) -> Path:
    folder = tmp_path / "media"
    (folder / "inner").mkdir(parents=True)
    for name in ("a-_1.mp4", "inner/b.webm", "silent.mkv"):
        (folder / name).write_bytes(b"media " + name.encode())
    return folder


def stored(media: Path) -> dict[str, tuple[Segment, ...]]:
    return {record.metadata["file"]: record.segments for record in ShardSet(media.parent / "out")}


def test_captions_of_the_json_become_segments_as_they_are(media, tmp_path):
    blank = {"start": [0, 1, 2, 3], "end": [1, 2, 3, 4], "text": [" ", None, float("nan"), "läuft"]}
    content = {"other": SPOKEN, "a-_1": SPOKEN, "b": blank, "further": SPOKEN}
    path = tmp_path / "raw_caption.json"
    path.write_text(json.dumps(content))
    report = build(media, path)
    assert stored(media) == {
        "a-_1.mp4": SEGMENTS,  # overlaps stay
        "inner/b.webm": (Segment(3.0, 4.0, "läuft"),),
        "silent.mkv": (),
    }
    assert (report.num_captions, report.num_without_text) == (4, 1)
    assert (report.num_blank_captions, report.num_unused_videos) == (3, 2)
    assert report.faults == []
    assert "captions of 2 videos that are not there" in str(report)
    assert build(media, path).reused


def test_captions_of_a_folder_of_csv_become_the_same_segments(media, tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "a-_1.csv").write_text(
        ",start,end,text\n0,0.4,4.2,now chop\n1,2,5,the\n2,2.5,3,onions"
    )
    (folder / "b.csv").write_text('start,end,text\n0,1,\n1,2,"a, b"\n')
    (folder / "unused.csv").write_text("start,end,text\n0,1,x\n")
    report = build(media, folder)
    assert stored(media)["a-_1.mp4"] == SEGMENTS
    assert stored(media)["inner/b.webm"] == (Segment(1.0, 2.0, "a, b"),)
    assert (report.num_blank_captions, report.num_unused_videos) == (1, 1)
    assert build(media, folder).reused
    (folder / "b.csv").write_text("start,end,text\n0,1,changed\n")
    with pytest.raises(ShardError, match="other files, captions or options"):
        build(media, folder)


def test_damaged_videos_are_reported_and_the_rest_is_built(media, tmp_path):
    (media / "c.mp4").write_bytes(b"media")
    (media / "d.mp4").write_bytes(b"media")
    content = {
        "a-_1": SPOKEN,
        "b": {"start": [0], "end": [1, 2], "text": ["x"]},
        "c": {"start": [3, 0, 0], "end": [1, 1, 1], "text": ["late", 7, "good"]},
        "d": 12,
    }
    (tmp_path / "caption.json").write_text(json.dumps(content))
    report = build(media, tmp_path / "caption.json")
    assert {fault.where: fault.reason for fault in report.faults} == {
        "caption.json:b": "must have start, end and text of one length, has 1 and 2 and 1",
        "caption.json:c": "2 captions are no text or have no usable times",
        "caption.json:d": "must have the lists start, end and text, is 12",
    }
    assert stored(media)["a-_1.mp4"] == SEGMENTS
    assert stored(media)["c.mp4"] == (Segment(0.0, 1.0, "good"),)


def test_damaged_csv_of_a_video_is_reported_and_the_rest_is_built(media, tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "a-_1.csv").write_text("start,end,text\n0,1,good\n")
    (folder / "b.csv").write_text("start,text\n0,x\n")
    (folder / "silent.csv").write_bytes(b"start,end,text\n0,1,\xff\n")
    reasons = {fault.where: fault.reason for fault in build(media, folder).faults}
    assert reasons["csv:b"] == "lacks the column end"
    assert "utf-8" in reasons["csv:silent"]
    assert stored(media)["a-_1.mp4"] == (Segment(0.0, 1.0, "good"),)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 50, 1 << 20])
def test_the_json_is_read_alike_in_pieces_of_any_size(tmp_path, monkeypatch, piece_bytes):
    words = ["a", '"}', "\\", "{[", "ü", "日本", "\n", "\x7f\x85"]
    draw = random.Random(0)
    content = {
        f"{draw.choice(words)}{index}": {
            "start": [index * 1e-7] * 3,
            "end": [index] * 3,
            "text": [" ".join(draw.choices(words, k=4)) for _ in range(3)],
        }
        for index in range(20)
    }
    content["0"] = 1234567
    monkeypatch.setattr(howto100m, "PIECE_BYTES", piece_bytes)
    for number, options in enumerate(({}, {"ensure_ascii": False}, {"indent": 1})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content, **options) + "\n", encoding="utf-8")
        videos = VideoJson(path, content)
        assert videos.num_unused == 0
        assert {video: videos.read(video) for video in content} == content


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_truncated_json_is_refused(media, tmp_path, share):
    whole = json.dumps({"a-_1": SPOKEN, "b": SPOKEN, "c": SPOKEN})
    (tmp_path / "caption.json").write_text(whole[: int(len(whole) * share)])
    with pytest.raises(ShardError, match=r"caption.json is truncated or damaged after byte \d+"):
        build(media, tmp_path / "caption.json")
    (tmp_path / "caption.json").write_text('{"a": {"text": ' + "[" * 100_000)
    with pytest.raises(ShardError, match="caption.json is truncated or damaged after byte 1"):
        build(media, tmp_path / "caption.json")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["media"]


def test_captions_of_other_videos_only_are_refused(media, tmp_path):
    (tmp_path / "caption.json").write_text(json.dumps({"x": SPOKEN, "y": SPOKEN}))
    (tmp_path / "csv").mkdir()
    for captions, number in (("caption.json", 2), ("csv", 0)):
        with pytest.raises(
            ShardError, match=f"{captions} has captions of {number} videos, .*ID.mp4"
        ):
            build(media, tmp_path / captions)


def test_forms_are_told_apart_by_their_content(tmp_path):
    for content, is_it in (
        (json.dumps({"a": SPOKEN}, indent=2), True),
        ("\ufeff" + json.dumps({"a": {"text": [], "start": [], "end": []}}), True),
        (json.dumps({"file": "a.mp4", "text": "x"}), False),
        (json.dumps({"meta": {"start": 3}, "file": "a.mp4"}), False),
        ("file,text\n", False),
        ("", False),
    ):
        (tmp_path / "captions").write_text(content, encoding="utf-8")
        assert is_howto100m(tmp_path / "captions") == is_it


def test_memory_does_not_grow_with_the_json(tmp_path):
    """60 MB of captions under a limit of memory that holds a few pieces of them."""
    captions = tmp_path / "caption.json"
    video = json.dumps({"start": [1.5] * 100, "end": [4.5] * 100, "text": ["chop onions"] * 100})
    with captions.open("w") as file:
        file.write("{")
        file.writelines(f'"v{index}": {video}, ' for index in range(25_000))
        file.write(f'"a": {video}}}')
    assert captions.stat().st_size > 60e6
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from vatt.packing.howto100m import VideoJson
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 40_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        videos = VideoJson(Path(sys.argv[1]), {"a"})
        print(videos.num_videos, len(videos.read("a")["text"]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, captions], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["25001", "100"]
