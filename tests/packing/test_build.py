import datetime
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from media_files import write_noise_clip

import vatt.packing.prepare
from vatt.errors import ShardError, UserError
from vatt.packing.build import build_shards
from vatt.shards.record import Segment
from vatt.shards.shard_set import ShardSet


def build(source: Path, out: Path, *, order="sorted", **options):
    """Packs files that need not be media, unless the test says so."""
    options = {"check_media": False, "show_progress": False, **options}
    return build_shards(source, out, order=order, **options)


@pytest.fixture
def media(tmp_path) -> Path:
    """Five files that pass for media, without captions."""
    folder = tmp_path / "media"
    (folder / "inner").mkdir(parents=True)
    for index, name in enumerate(("b.mp4", "a.webm", "a.MP4", "inner/c.d.m4a", "inner/e.mp4")):
        (folder / name).write_bytes(f"media {name}".encode() * (index + 1))
    (folder / "notes.txt").write_text("no media")
    (folder / ".hidden.mp4").write_bytes(b"no media either")
    return folder


def captions_of(*entries: object) -> str:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def stored_files(out: Path) -> dict[str, tuple[Segment, ...]]:
    return {record.metadata["file"]: record.segments for record in ShardSet(out)}


def test_every_media_file_becomes_a_sample_with_its_bytes(media, tmp_path):
    report = build(media, tmp_path / "out", samples_per_shard=2)
    shards = ShardSet(tmp_path / "out")
    assert shards.shard_sizes.tolist() == [2, 2, 1]
    assert [path.name for path in shards.paths] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [record.key for record in shards] == ["a", "a_2", "b", "inner_c_d", "inner_e"]
    for record in shards:
        window = record.media
        stored = Path(window.path).read_bytes()[window.offset : window.offset + window.size]
        assert stored == (media / record.metadata["file"]).read_bytes()
    assert (report.num_samples, report.num_shards, report.num_without_text) == (5, 3, 5)
    assert report.num_bytes == sum(
        (media / file).stat().st_size for file in stored_files(tmp_path / "out")
    )
    assert report.faults == []


def test_captions_of_jsonl_become_segments_and_metadata(media, tmp_path):
    timed = [{"start_seconds": 0.5, "end_seconds": 2, "text": "a dog"}, {"text": " "}]
    (media / "captions.jsonl").write_text(
        captions_of(
            {"file": "./a.MP4", "segments": timed, "license": "CC0"},
            {"file": "inner\\e.mp4", "text": "the whole clip"},
            {"file": "b.mp4", "segments": []},
        )
    )
    report = build(media, tmp_path / "out")
    stored = stored_files(tmp_path / "out")
    assert stored["a.MP4"] == (Segment(0.5, 2.0, "a dog"),)
    assert stored["inner/e.mp4"] == (Segment(0.0, math.inf, "the whole clip"),)
    assert stored["b.mp4"] == stored["a.webm"] == ()
    assert ShardSet(tmp_path / "out")[0].metadata["license"] == "CC0"
    assert (report.num_captions, report.num_without_text) == (2, 3)


def test_captions_of_csv_become_segments_in_their_order(media, tmp_path):
    (media / "captions.csv").write_bytes(
        "\ufefffile,start_seconds,end_seconds,text,speaker\r\n"
        'b.mp4,0.5,2,"a dog, barking",Ann\r\n'
        "b.mp4,2,3.5,ein Hund läuft,\r\n"
        "a.webm,,,the whole clip,\r\n".encode()
    )
    build(media, tmp_path / "out")
    stored = stored_files(tmp_path / "out")
    dogs = (Segment(0.5, 2.0, "a dog, barking"), Segment(2.0, 3.5, "ein Hund läuft"))
    assert stored["b.mp4"] == dogs
    assert stored["a.webm"] == (Segment(0.0, math.inf, "the whole clip"),)
    records = {record.key: record for record in ShardSet(tmp_path / "out")}
    assert records["b"].metadata["speaker"] == "Ann"


def test_captions_of_parquet_become_segments_and_metadata(media, tmp_path):
    rows = {
        "file": ["b.mp4", "b.mp4", "a.webm", "../x.mp4", None, "a.MP4"],
        "start_seconds": [0.5, 2.0, math.nan, 0.0, 0.0, 3.0],
        "end_seconds": [2.0, 3.5, None, 1.0, 1.0, 1.0],
        "text": ["a dog, barking", "ein Hund läuft", "the whole clip", "out", "of what", "late"],
        "day": [datetime.date(2020, 2, 1)] * 6,
        "views": [7, 7, None, 0, 0, 0],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), media / "captions.parquet", row_group_size=2)
    report = build(media, tmp_path / "out")
    stored = stored_files(tmp_path / "out")
    dogs = (Segment(0.5, 2.0, "a dog, barking"), Segment(2.0, 3.5, "ein Hund läuft"))
    assert stored["b.mp4"] == dogs
    assert stored["a.webm"] == (Segment(0.0, math.inf, "the whole clip"),)
    metadata = {record.key: record.metadata for record in ShardSet(tmp_path / "out")}
    assert (metadata["b"]["day"], metadata["b"]["views"]) == ("2020-02-01", 7)
    assert [fault.where for fault in report.faults] == [f"captions.parquet:{n}" for n in (4, 5, 6)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda whole: whole[:-30], "cannot be read|is damaged or no parquet"),
        (lambda whole: whole.replace(b"text", b"tixt"), "lacks the column text: .*names file,tixt"),
    ],
)
def test_unusable_parquet_is_named(media, tmp_path, make, reason):
    table = pyarrow.table({"file": ["b.mp4"], "text": ["a dog"]})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, store_schema=False)
    (media / "captions.parquet").write_bytes(make(sink.getvalue().to_pybytes()))
    with pytest.raises(ShardError, match=f"captions.parquet.*({reason})"):
        build(media, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parquet_that_would_fill_the_memory_is_refused(media, tmp_path):
    table = pyarrow.table({"file": ["b.mp4"], "text": [b"0" * 80_000_000]})
    pyarrow.parquet.write_table(table, media / "captions.parquet", compression="zstd")
    with pytest.raises(ShardError, match=r"captions.parquet is refused: .* at most 67,108,864 are"):
        build(media, tmp_path / "out")


def test_parquet_without_pyarrow_says_what_to_install(media, tmp_path, monkeypatch):
    table = pyarrow.table({"file": ["b.mp4"], "text": ["a dog"]})
    pyarrow.parquet.write_table(table, media / "captions.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as Python marks what cannot be imported
    with pytest.raises(
        UserError, match=r'needs the package pyarrow: pip install "vatt\[parquet\]"'
    ):
        build(media, tmp_path / "out")


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_captions_without_a_word_are_dropped_and_counted(media, tmp_path, name):
    if name.endswith("csv"):
        (media / name).write_text("file,text\nb.mp4,a\nb.mp4, \na.webm,\n")
    else:
        entries = [{"file": "b.mp4", "segments": [{"text": "a"}, {"text": " "}]}]
        (media / name).write_text(captions_of(*entries, {"file": "a.webm", "text": ""}))
    report = build(media, tmp_path / "out")
    assert (report.num_captions, report.num_blank_captions, report.num_without_text) == (1, 2, 4)
    assert "left out: 2 captions without a word" in str(report)


def test_bad_entries_are_reported_and_the_rest_is_built(media, tmp_path):
    (media / "captions.jsonl").write_bytes(
        captions_of(
            {"file": "b.mp4", "text": "good"},
            {"file": "gone.mp4", "text": "of nothing"},
            {"file": "notes.txt", "text": "of no media"},
            {"file": "../b.mp4", "text": "outside"},
            {"file": "b.mp4", "text": "again"},
            {"text": "of what"},
            {
                "file": "a.webm",
                "segments": [{"text": "late", "start_seconds": 3, "end_seconds": 1}],
            },
        ).encode()
        + b'{"file": "a.MP4", "text"\n\xff\n'
    )
    (media / "empty.mp4").touch()
    (media / "broken_link.mp4").symlink_to(media / "nowhere.mp4")
    report = build(media, tmp_path / "out")
    assert stored_files(tmp_path / "out")["b.mp4"][0].text == "good"
    faults = {fault.where: fault.reason for fault in report.faults}
    assert faults == {
        "captions.jsonl:4": "'../b.mp4' leads out of the folder: give a path inside it",
        "captions.jsonl:5": "'b.mp4' was described by an earlier line already",
        "captions.jsonl:6": 'needs a "file"',
        "captions.jsonl:7": faults["captions.jsonl:7"],
        "captions.jsonl:8": faults["captions.jsonl:8"],
        "captions.jsonl:9": faults["captions.jsonl:9"],
        "gone.mp4": "has captions, but there is no such file",
        "notes.txt": "has captions, but is no media file that vatt knows",
        "empty.mp4": "is empty (0 bytes)",
        "broken_link.mp4": "cannot be read: No such file or directory",
    }
    assert "must not end before it starts" in faults["captions.jsonl:7"]
    assert report.num_samples == 5
    assert "left out: empty.mp4: is empty (0 bytes)" in str(report)


def test_bad_lines_of_csv_are_reported_by_number(media, tmp_path):
    (media / "captions.csv").write_text(
        "file,start_seconds,end_seconds,text\nb.mp4,soon,2,a\nb.mp4,1,2,b, c\nb.mp4,1,2,good\n"
    )
    report = build(media, tmp_path / "out")
    assert [fault.where for fault in report.faults] == ["captions.csv:2", "captions.csv:3"]
    assert "must be seconds" in report.faults[0].reason
    assert "quote texts with commas" in report.faults[1].reason
    assert stored_files(tmp_path / "out")["b.mp4"] == (Segment(1.0, 2.0, "good"),)


@pytest.mark.parametrize("quote", ['b.mp4,1,2,"never closed', 'b.mp4,1,2,good\nb.mp4,3,4,"open\n'])
def test_a_quote_that_never_closes_swallows_no_captions(media, tmp_path, quote):
    lines = f"file,start_seconds,end_seconds,text\n{quote}\nb.mp4,5,6,another\nb.mp4,7,8,more\n"
    (media / "captions.csv").write_text(lines)
    number = lines[: lines.index('"')].count("\n") + 1
    with pytest.raises(ShardError, match=rf"captions.csv, line {number}: cannot be read as csv"):
        build(media, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "file, start_seconds, end_seconds, text\nb.mp4, 1, 2, good\n"),
        ("table.CSV", "file,start_seconds,end_seconds,text\nb.mp4,1,2,good\n"),
        ("table.tsv", "file\tstart_seconds\tend_seconds\ttext\nb.mp4\t1\t2\tgood\n"),
    ],
)
def test_tables_are_known_by_their_extension_with_blanks_or_without(media, tmp_path, name, content):
    (media / name).write_text(content)
    report = build(media, tmp_path / "out", captions=media / name)
    assert report.num_captions == 1
    assert stored_files(tmp_path / "out")["b.mp4"] == (Segment(1.0, 2.0, "good"),)


def test_a_caption_may_be_the_transcript_of_a_long_talk(media, tmp_path):
    words = "word " * 40_000
    (media / "captions.csv").write_text(f"file,text\nb.mp4,{words}\n")
    build(media, tmp_path / "out")
    assert stored_files(tmp_path / "out")["b.mp4"][0].text == words.strip()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_composed_and_with_decomposed_letters_are_the_same(media, tmp_path, forms):
    on_disk, in_table = (unicodedata.normalize(form, "Café über.mp4") for form in forms)
    shutil.copy(media / "b.mp4", media / on_disk)
    (media / "captions.csv").write_text(f"file,text\n{in_table},a cup\n", encoding="utf-8")
    report = build(media, tmp_path / "out")
    assert not report.faults
    assert report.num_captions == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("captions.csv", b"name,words\n", "lacks the column file and text"),
        (
            "captions.csv",
            b"file,start_seconds,words\n",
            r"must name text \(or caption, sentence, .*\), and names file,start_seconds,words$",
        ),
        ("captions.csv", b"", "and names nothing"),
        ("captions.csv", b"file,text\nb.mp4,\xff\n", "not UTF-8 text .*save it as UTF-8"),
    ],
)
def test_unreadable_caption_file_is_named(media, tmp_path, name, content, reason):
    (media / name).write_bytes(content)
    with pytest.raises(ShardError, match=f"{name}(,| is)? .*{reason}"):
        build(media, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_caption_files_are_refused_and_another_can_be_named(media, tmp_path):
    for name in ("captions.csv", "captions.jsonl", "other.jsonl"):
        (media / name).write_text(captions_of({"file": "b.mp4", "text": name}))
    with pytest.raises(ShardError, match="has captions.jsonl and captions.csv: leave one of them"):
        build(media, tmp_path / "out")
    with pytest.raises(ShardError, match="no caption file .*gone.csv"):
        build(media, tmp_path / "out", captions=media / "gone.csv")
    build(media, tmp_path / "out", captions=media / "other.jsonl")
    assert stored_files(tmp_path / "out")["b.mp4"][0].text == "other.jsonl"


def test_missing_and_empty_media_folders_are_named(tmp_path):
    with pytest.raises(ShardError, match="no media folder .*gone"):
        build(tmp_path / "gone", tmp_path / "out")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ShardError, match="notes holds no media: looked for .*mp4"):
        build(tmp_path / "notes", tmp_path / "out")
    (tmp_path / "notes" / "a.mp4").touch()
    with pytest.raises(ShardError, match=r"none of the 1 media files .*a.mp4: is empty"):
        build(tmp_path / "notes", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_shards_that_version_0_1_built_with_faults_are_taken_over(media, tmp_path):
    (media / "empty.mp4").touch()
    first = build(media, tmp_path / "out")
    path = tmp_path / "out" / "build.json"
    built = json.loads(path.read_text())
    for fault in built["report"]["faults"]:
        fault["name"] = fault.pop("where")
    path.write_text(json.dumps(built))
    second = build(media, tmp_path / "out")
    assert second.reused
    assert second.faults == first.faults != []


def test_second_build_from_the_same_files_keeps_the_shards(media, tmp_path):
    (media / "empty.mp4").touch()
    first = build(media, tmp_path / "out")
    written = (tmp_path / "out/00000.tar").stat()
    second = build(media, tmp_path / "out")
    assert second.reused
    assert not first.reused
    assert second.faults == first.faults
    assert (tmp_path / "out/00000.tar").stat().st_ino == written.st_ino


def test_shards_of_earlier_versions_are_kept_if_no_other_options_are_asked_for(media, tmp_path):
    build(media, tmp_path / "out")
    path = tmp_path / "out" / "build.json"
    digest = hashlib.sha256(repr((1, (500, False))).encode())  # as those versions computed it
    for name in sorted(["b.mp4", "a.webm", "a.MP4", "inner/c.d.m4a", "inner/e.mp4"]):
        status = (media / name).stat()
        digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
    built = json.loads(path.read_text()) | {"fingerprint": digest.hexdigest()}
    path.write_text(json.dumps(built))
    assert build(media, tmp_path / "out", order="shuffled").reused
    assert build(media, tmp_path / "out", check_media=True).reused
    with pytest.raises(ShardError, match="other files, captions or options"):
        build(media, tmp_path / "out", shard_bytes=10)


def test_files_are_shuffled_by_their_names_and_added_ones_change_nothing(tmp_path):
    media = tmp_path / "media"
    for label in range(20):  # class folders
        (media / f"{label:02d}").mkdir(parents=True)
        for number in range(10):
            (media / f"{label:02d}" / f"{number}.mp4").write_bytes(b"x")
    build(media, tmp_path / "first", order="shuffled", samples_per_shard=25)
    first = [*stored_files(tmp_path / "first")]
    assert len(first) == 200
    for start in range(0, 200, 25):
        labels = Counter(file[:2] for file in first[start : start + 25])
        assert len(labels) > 10  # sorted: 3
    (media / "00" / "new.mp4").write_bytes(b"x")
    (media / "new.mp4").write_bytes(b"x")
    build(media, tmp_path / "second", order="shuffled", samples_per_shard=25)
    second = [*stored_files(tmp_path / "second")]
    assert [file for file in second if "new" not in file] == first
    build_shards(media, tmp_path / "third", check_media=False, show_progress=False)  # the default
    assert [*stored_files(tmp_path / "third")] == second


def test_a_shard_ends_where_its_media_reach_their_size_or_number(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    for number, size in enumerate([40, 60, 1, 250, 30, 30, 30, 30, 99, 2]):
        (media / f"{number}.mp4").write_bytes(b"x" * size)
    build(media, tmp_path / "out", shard_bytes=100, samples_per_shard=3)
    shards = ShardSet(tmp_path / "out")
    assert shards.shard_sizes.tolist() == [2, 2, 3, 2, 1]  # 100, 251, 90, 129 and 2 bytes
    assert [record.key for record in shards] == [str(number) for number in range(10)]
    with pytest.raises(UserError, match="shard_bytes must be at least 1"):
        build(media, tmp_path / "none", shard_bytes=0)


def test_some_files_can_be_packed_and_captions_of_the_others_are_no_fault(media, tmp_path):
    (media / "captions.jsonl").write_text(
        captions_of({"file": "b.mp4", "text": "one"}, {"file": "a.webm", "text": "another"})
    )
    (media / "inner" / "e.txt").write_text("a third")
    report = build(media, tmp_path / "out", files={"b.mp4", "a.MP4"})
    assert {name: len(found) for name, found in stored_files(tmp_path / "out").items()} == {
        "b.mp4": 1,
        "a.MP4": 0,
    }
    assert report.faults == []
    (media / "inner" / "e.mp4").write_bytes(b"changed")  # is not among them
    assert build(media, tmp_path / "out", files={"b.mp4", "a.MP4"}).reused


def test_shards_of_other_files_can_be_replaced_but_nothing_else(media, tmp_path):
    build(media, tmp_path / "out")
    assert build(media, tmp_path / "out", replace=True).reused
    (media / "new.mp4").write_bytes(b"new")
    assert build(media, tmp_path / "out", replace=True).num_samples == 6
    (tmp_path / "out" / "00000.tar").unlink()
    assert build(media, tmp_path / "out", replace=True).num_samples == 6
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(ShardError, match="holds something else"):
        build(media, other, replace=True)


def test_folder_with_something_else_is_refused_and_left_alone(media, tmp_path):
    build(media, tmp_path / "out")
    before = (tmp_path / "out/00000.tar").read_bytes()
    (media / "captions.jsonl").write_text(captions_of({"file": "b.mp4", "text": "new"}))
    with pytest.raises(ShardError, match="out holds shards of other files.*delete it"):
        build(media, tmp_path / "out")
    assert (tmp_path / "out/00000.tar").read_bytes() == before
    with pytest.raises(ShardError, match="media exists and holds something else"):
        build(media, media)


def test_folder_that_lost_a_shard_is_refused(media, tmp_path):
    build(media, tmp_path / "out", samples_per_shard=2)
    (tmp_path / "out/00001.tar").unlink()
    with pytest.raises(ShardError, match="out has lost some of its 3 shards"):
        build(media, tmp_path / "out", samples_per_shard=2)


def test_empty_folder_is_filled(media, tmp_path):
    (tmp_path / "deep/out").mkdir(parents=True)
    assert build(media, tmp_path / "deep/out").num_samples == 5


def test_a_link_to_an_empty_folder_and_the_current_folder_are_filled(media, tmp_path, monkeypatch):
    for name in ("real", "current"):
        (tmp_path / name).mkdir()
    before = (tmp_path / "current").stat().st_ino
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "current")
    for out in (tmp_path / "link", tmp_path / "dangling", Path()):
        assert not build(media, out).reused
        assert len(ShardSet(out)) == 5
        assert sorted(path.name for path in out.iterdir()) == [
            *("00000.tar", "00000.tar.index", "build.json")
        ]
        assert build(media, out).reused
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "current").stat().st_ino == before  # nor could a mount point be replaced


def test_a_folder_inside_of_the_media_is_no_source_of_its_own_shards(media):
    for out in (media / "shards", media / "inner/shards"):
        first = build(media, out)
        assert first.num_samples == 5
        assert build(media, out).reused
        assert build(media, out.with_name("again")).num_samples == 5


def test_links_to_folders_are_followed_and_loops_left(media, tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/f.mp4").write_bytes(b"media f")
    (media / "linked").symlink_to(tmp_path / "elsewhere")
    (media / "a_loop").symlink_to(media)
    (media / "inner/loop").symlink_to(media)
    (tmp_path / "elsewhere/back").symlink_to(media / "inner")  # a loop of two
    (media / "aliased").symlink_to(media / "inner")
    (media / "itself.mp4").symlink_to(media / "itself.mp4")
    report = build(media, tmp_path / "out")
    names = ["a.MP4", "a.webm", "b.mp4", "inner/c.d.m4a", "inner/e.mp4", "linked/deep/f.mp4"]
    assert list(stored_files(tmp_path / "out")) == names
    assert [fault.where for fault in report.faults] == ["itself.mp4"]
    assert "cannot be read: Too many levels of symbolic links" in report.faults[0].reason


def test_a_build_that_fails_leaves_an_empty_folder_empty(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media/empty.mp4").touch()
    (tmp_path / "out").mkdir()
    with pytest.raises(ShardError, match="none of the 1 media files"):
        build(tmp_path / "media", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_that_are_no_media_are_left_out(tmp_path, num_workers):
    media, out = tmp_path / "media", tmp_path / "out"
    media.mkdir()
    for index in range(6):
        write_noise_clip(media / f"good_{index}.mp4", num_frames=5)
    for name in ("bad.mp4", "good_3_bad.mp4"):
        (media / name).write_bytes(b"garbage" * 100)
    report = build(media, out, check_media=True, num_workers=num_workers)
    assert list(stored_files(out)) == [f"good_{index}.mp4" for index in range(6)]
    assert [fault.where for fault in report.faults] == ["bad.mp4", "good_3_bad.mp4"]
    assert "media" in report.faults[0].reason
    assert build(media, out, check_media=True, num_workers=2 - num_workers).reused


def test_a_file_that_hangs_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "media").mkdir()
    write_noise_clip(tmp_path / "media/good.mp4")
    os.mkfifo(tmp_path / "media/hangs.mp4")  # opening it waits for ever
    monkeypatch.setattr(vatt.packing.prepare, "LIMIT_SECONDS", 1.0)
    report = build(tmp_path / "media", tmp_path / "out", check_media=True, num_workers=2)
    assert list(stored_files(tmp_path / "out")) == ["good.mp4"]
    assert report.faults[0].reason == "gave no answer within 1 s"


def test_each_file_is_opened_once_and_the_finished_shards_are_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "media").mkdir()
    for index in range(1000):
        (tmp_path / f"media/{index:06d}.mp4").write_bytes(b"m" * 5000)
    opened = Counter()

    def count_calls(owner, open_file):
        def counting(*arguments, **options):
            opened[Path(arguments[0]).suffix if arguments else "tar"] += 1
            return open_file(*arguments, **options)

        monkeypatch.setattr(owner, "open", counting)

    count_calls(Path, Path.open)
    count_calls(tarfile, tarfile.open)
    build(tmp_path / "media", tmp_path / "out")
    assert opened[".mp4"] == 1000
    assert sum(opened.values()) < 1020
    opened.clear()
    assert len(ShardSet(tmp_path / "out")) == 1000
    assert not opened


def test_too_little_space_is_said_before_anything_is_written(media, tmp_path):
    with (media / "huge.mp4").open("wb") as file:
        try:
            file.truncate(1 << 43)  # 8 TB that take no room
        except OSError as error:
            assert error.errno in (errno.EFBIG, errno.EINVAL)  # noqa: PT017
            pytest.skip("this file system has no files of 8 TB")
    with pytest.raises(ShardError, match=r"out needs 8,796,.* MB and its disk has .* MB left"):
        build(media, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


# A limit on file sizes stands for a full disk: writing fails in the middle in the same way.
BUILD_PROGRAM = textwrap.dedent("""
    import resource, sys
    from vatt.packing.build import build_shards
    from vatt.errors import ShardError
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    try:
        build_shards(
            sys.argv[1], sys.argv[2], samples_per_shard=5, order="sorted", check_media=False,
            show_progress=False,
        )
    except ShardError as error:
        print(error)
""")


def test_full_disk_leaves_no_folder(tmp_path):
    (tmp_path / "media").mkdir()
    for index in range(20):
        (tmp_path / f"media/{index:02d}.mp4").write_bytes(b"m" * (20_000 * (1 + index)))
    command = [sys.executable, "-c", BUILD_PROGRAM, tmp_path / "media", tmp_path / "out", "600000"]
    done = subprocess.run(command, capture_output=True, text=True)
    shard = tmp_path / "out/00001.tar"
    assert done.stdout.startswith(f"no space left to write {shard} ("), done.stderr
    assert done.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


def test_interrupted_check_of_media_leaves_no_folder(tmp_path):
    (tmp_path / "media").mkdir()
    write_noise_clip(tmp_path / "media/0.mp4")
    os.mkfifo(tmp_path / "media/waits.mp4")
    command = [sys.executable, "-m", "vatt.cli", "shards", "build", tmp_path / "media"]
    options = [tmp_path / "out", "--workers", "2"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/.00000.tar.*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"vatt: Stopped.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


def test_interrupted_build_leaves_no_folder(tmp_path):
    (tmp_path / "media").mkdir()
    for index in range(5):
        (tmp_path / f"media/{index}.mp4").write_bytes(b"m" * 1000)
    os.mkfifo(tmp_path / "media/waits.mp4")  # reading it waits for ever, until the signal comes
    command = [sys.executable, "-c", BUILD_PROGRAM, tmp_path / "media", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/00000.tar")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


@pytest.mark.parametrize("name", ["captions.CSV", "Captions.tsv", "CAPTIONS.JSONL"])
def test_caption_files_are_found_whatever_the_case_of_their_name(name: str, tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "a.wav").write_bytes(bytes(100))
    mark = "\t" if name.endswith("tsv") else ", "
    rows = [("file", "start_seconds", "end_seconds", "text"), ("a.wav", "0", "1", "a dog")]
    text = "".join(mark.join(row) + "\n" for row in rows)
    line = '{"file": "a.wav", "segments": [{"text": "a dog"}]}\n'
    (media / name).write_text(line if name.endswith("JSONL") else text)
    report = build(media, tmp_path / "out")
    assert (report.num_captions, report.faults) == (1, [])
