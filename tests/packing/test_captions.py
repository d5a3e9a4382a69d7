"""Captions as people have them: under other names, with clock times, beside their media."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import av
import pytest

from vatt.errors import ShardError
from vatt.packing.build import BuildReport, build_shards
from vatt.packing.captions import read_captions
from vatt.shards.record import Segment
from vatt.shards.shard_set import ShardSet

WORDS = [Segment(0.7, 1.4, "a dog"), Segment(3661.5, math.inf, "a cat & a bird")]


def build(folder: Path, **options: object) -> tuple[BuildReport, dict[str, list[Segment]]]:
    """Report of a build, and the captions that its shards hold, by media file."""
    out = folder.with_name(f"{folder.name}-out")
    options |= {"check_media": False, "show_progress": False, "order": "sorted"}
    report = build_shards(folder, out, **options)
    return report, {record.metadata["file"]: list(record.segments) for record in ShardSet(out)}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "inner/ä b.mp4"):
        (folder / name).write_bytes(b"media")
    return folder


@pytest.mark.parametrize(
    "segment",
    [
        {"start": 0.7, "end": 1.4, "id": 3, "tokens": [1], "temperature": 0.0},  # Whisper
        {"timestamp": [0.7, 1.4]},  # transformers
        {"timestamps": {"from": "00:00:00,700", "to": "00:00:01,400"}, "offsets": {"from": 700}},
        {"begin": "0:00.7", "stop": "0:01.4"},
        {"start_time": "00:00:00.7", "end_time": " 1.4 "},
    ],
)
def test_times_are_read_under_the_names_that_other_programs_write(
    media: Path, segment: Mapping[str, object]
) -> None:
    entry = {"file": "a.mp4", "segments": [{**segment, "text": "a dog"}]}
    (media / "captions.jsonl").write_text(json.dumps(entry))
    report, captions = build(media)
    assert captions["a.mp4"] == WORDS[:1]
    assert not report.faults


def test_captions_under_a_key_that_is_not_known_are_told(media: Path) -> None:
    row = {"file": "a.mp4", "words": [{"start": 0.7, "end": 1.4, "text": "dog"}], "speaker": "s1"}
    (media / "captions.jsonl").write_text(json.dumps(row))
    (fault,) = build(media)[0].faults
    assert str(fault) == (
        'captions.jsonl: no line has "segments" or "text", where captions stand, but speaker, words'
    )
    (media / "captions.jsonl").write_text(json.dumps({**row, "segments": []}))
    assert not read_captions(media / "captions.jsonl").faults


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("file,start,end,text", "0.7", "1.4"),
        ("Filename,Start,End,Caption", "0.7", "1.4"),
        ("path,begin,stop,sentence", "00:00:00.7", "00:00:01,4"),
        ("video,start_time,end_time,transcript", "0:00.7", "0:01.4"),
    ],
)
@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv", "captions.jsonl"])
def test_tables_are_read_under_the_names_that_people_give(
    media: Path, header: str, start: str, end: str, name: str
) -> None:
    columns = header.split(",")
    rows = [("a.mp4", start, end, "a dog"), ("a.mp4", "1:01:01.5", "", "a cat & a bird")]
    lines = ["\t".join(cells) for cells in (columns, *rows)]
    if name.endswith("csv"):
        lines = [header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    if name.endswith("jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    (media / name).write_text("\n".join(lines))
    report, captions = build(media)
    assert captions == {"a.mp4": WORDS, "b.mp4": [], "inner/ä b.mp4": []}
    assert not report.faults
    assert f"samples with captions: 1 from {name}" in str(report)


def test_columns_with_the_known_names_leave_others_as_metadata(media: Path) -> None:
    (media / "captions.csv").write_text("file,text,caption,start\na.mp4,a dog,a title,0.7\n")
    _, captions = build(media)
    assert captions["a.mp4"] == [Segment(0.7, math.inf, "a dog")]
    (record, *_) = ShardSet(media.with_name("media-out"))
    assert record.metadata == {"key": "a", "file": "a.mp4", "caption": "a title"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"start_ms": 700, "text": "a dog"}, "'start_ms', which may be a time"),
        ({"segments": [{"from": 1, "text": "a dog"}]}, "'from', which may be a time"),
        ({"segments": [{"start": "soon", "text": "a dog"}]}, "times must be seconds, got"),
        ({"segments": [{"start": 1, "begin": 1, "text": "a"}]}, "'start' and 'begin': name the"),
        ({"caption": "a", "sentence": "b"}, "'caption' and 'sentence': name the right one 'text'"),
    ],
)
def test_times_and_texts_that_could_mean_something_else_are_left_out_by_line(
    media: Path, line: Mapping[str, object], reason: str
) -> None:
    (media / "captions.jsonl").write_text(json.dumps({"file": "a.mp4", **line}))
    report, captions = build(media)
    assert captions["a.mp4"] == []
    (fault,) = report.faults
    assert fault.where == "captions.jsonl:1"
    assert reason in fault.reason


def test_columns_that_mean_the_same_are_refused(media: Path) -> None:
    (media / "captions.csv").write_text("file,caption,sentence\na.mp4,a,b\n")
    with pytest.raises(ShardError, match="line 1: has 'caption' and 'sentence': name the right"):
        build(media)


SRT = """1
00:00:00,700 --> 00:00:01,400
<i>a</i> {\\an8}dog

2
01:01:01,500 --> 01:01:03,250
a cat &amp;
a bird
"""
VTT = """\ufeffWEBVTT

NOTE made by hand

first
00:00.700 --> 00:01.400 line:0 align:start
<v Anna>a <c.loud>dog</c>

01:01:01.500 --> 01:01:03.250
a cat &amp;
a bird
"""
ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:09.00,Default,,0,0,0,,no caption
Dialogue: 0,0:00:00.70,0:00:01.40,Default,,0,0,0,,{\\i1}a{\\i0} dog
Dialogue: 0,1:01:01.50,1:01:03.25,Default,,0,0,0,,a cat &\\Na bird
"""
WHISPER = json.dumps(
    {
        "text": "a dog a cat & a bird",
        "language": "en",
        "segments": [
            {"id": 0, "start": 0.7, "end": 1.4, "text": " a dog", "avg_logprob": -0.2},
            {"id": 1, "start": 3661.5, "end": 3663.25, "text": " a cat & a bird"},
        ],
    }
)


@pytest.mark.parametrize(
    ("extension", "content"),
    [(".srt", SRT), (".SRT", SRT.replace("\n", "\r\n")), (".vtt", VTT), (".ass", ASS)],
)
def test_subtitles_beside_media_have_the_times_that_ffmpeg_reads(
    media: Path, extension: str, content: str
) -> None:
    path = media / f"a{extension}"
    path.write_bytes(content.encode())
    with av.open(str(path)) as container:
        (stream,) = container.streams.subtitles
        times = [
            float(time * stream.time_base)
            for packet in container.demux(stream)
            if packet.duration and b"no caption" not in bytes(packet)
            for time in (packet.pts, packet.pts + packet.duration)
        ]
    report, captions = build(media)
    found = captions["a.mp4"]
    assert times == pytest.approx(
        [time for segment in found for time in (segment.start_seconds, segment.end_seconds)]
    )
    assert len(times) == 4
    assert [segment.text for segment in found] == [segment.text for segment in WORDS]
    assert report.num_with_captions == {extension.lower(): 1}


@pytest.mark.parametrize(
    "name", ["inner/ä b.srt", "inner/ä b.en.srt", "inner/ä b.pt-BR.srt", "inner/ä b.mp4.srt"]
)
def test_subtitles_are_found_under_the_names_that_players_know(media: Path, name: str) -> None:
    (media / name).write_text(SRT)
    report, captions = build(media)
    assert [segment.text for segment in captions["inner/ä b.mp4"]] == [
        segment.text for segment in WORDS
    ]
    assert (report.num_captions, report.num_without_text) == (2, 2)


def test_transcripts_and_texts_beside_media_are_captions(media: Path) -> None:
    (media / "a.json").write_text(WHISPER)
    (media / "b.txt").write_text("a dog\nthat barks\n")
    report, captions = build(media)
    assert [segment.start_seconds for segment in captions["a.mp4"]] == [0.7, 3661.5]
    assert captions["b.mp4"] == [Segment(0.0, math.inf, "a dog that barks")]
    assert "samples with captions: 1 from .json, 1 from .txt" in str(report)


def test_report_names_what_was_taken_and_what_was_ignored(media: Path) -> None:
    (media / "captions.csv").write_text("file,text\na.mp4,a dog\n")
    for name in ("a.srt", "b.en.vtt", "b.de.vtt", "b.srt", "elsewhere.srt"):
        (media / name).write_text(VTT if name.endswith("vtt") else SRT)
    (media / "inner" / "ä b.json").write_text('{"views": 3}')
    for name in ("paper.pdf", "list.pdf", "README"):
        (media / name).write_bytes(b"other")
    report, captions = build(media)
    assert captions["a.mp4"] == [Segment(0.0, math.inf, "a dog")]
    assert len(captions["b.mp4"]) == 2
    assert captions["inner/ä b.mp4"] == []
    assert report.num_with_captions == {"captions.csv": 1, ".vtt": 1}
    assert report.num_ignored == {".srt": 3, ".pdf": 2, ".json": 1, ".vtt": 1, "README": 1}
    assert "ignored other files: 3 .srt, 2 .pdf, 1 .json" in str(report)
    again, _ = build(media)
    assert again.reused
    assert again.num_ignored == report.num_ignored


def test_changed_subtitles_are_other_captions(media: Path) -> None:
    (media / "a.srt").write_text(SRT)
    build(media)
    (media / "a.srt").write_text(SRT.replace("dog", "hound"))
    with pytest.raises(ShardError, match="of other files, captions or options"):
        build(media)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.srt", "ein Hünd".encode("latin-1"), "is not UTF-8 text"),
        ("a.srt", b"just words\n", "holds no captions in the form of .srt"),
        ("a.srt", SRT.replace("01,400", "00,100").encode(), "must not end before it starts"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'{"segments": [{"begin_ms": 1, "text": "a"}]}', "which may be a time"),
    ],
)
def test_unusable_file_beside_media_is_named(
    media: Path, name: str, content: bytes, reason: str
) -> None:
    (media / name).write_bytes(content)
    report, captions = build(media)
    assert captions["a.mp4"] == []
    (fault,) = report.faults
    assert fault.where == name
    assert reason in fault.reason
