"""Tar shards that others have made are used where they are."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from vatt.cli import main
from vatt.errors import ShardError
from vatt.packing.check import check_shards
from vatt.packing.index_tars import index_shards
from vatt.shards.index import scan_shard
from vatt.shards.index_file import index_path, read_index
from vatt.shards.shard_set import ShardSet


def index(source: Path, out: Path | None = None, **options):
    return index_shards(source, out, show_progress=False, **options)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path) -> Path:
    """What video2dataset leaves behind: 3 shards with 4 samples each, parquet and statistics."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(3):
        members = {}
        for key in (f"{shard:05d}{sample:04d}" for sample in range(4)):
            members[f"{key}.mp4"] = b"media " + key.encode()
            members[f"{key}.json"] = json.dumps({"url": "https://example.org", "key": key}).encode()
            members[f"{key}.txt"] = b"" if key.endswith("3") else b"a dog barks"
        members[f"{shard:05d}0001.json"] = b"{" if shard == 1 else b"{}"
        del members[f"{shard:05d}0000.mp4"]
        write_tar(folder / f"{shard:05d}.tar", members)
        (folder / f"{shard:05d}.parquet").write_bytes(b"not ours")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_indexes_are_made_beside_the_tars_and_nothing_else_is_touched(tars, num_workers):
    before = {path: path.stat().st_mtime_ns for path in tars.iterdir()}
    report = index(tars, num_workers=num_workers)
    after = set(tars.iterdir())
    assert after - set(before) == {index_path(tars / f"{n:05d}.tar") for n in range(3)}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for tar in tars.glob("*.tar"):
        assert read_index(tar).same_as(scan_shard(tar))
    assert (report.num_samples, report.num_shards, report.num_new) == (12, 3, 3)
    assert (report.num_captions, report.num_without_text, report.num_without_media) == (8, 3, 3)
    assert report.num_bytes == 9 * len("media 000000000")
    assert [fault.where for fault in report.faults] == ["00001.tar:000010001"]
    assert report.is_usable
    again = index(tars, num_workers=num_workers)
    assert (again.num_new, again.num_samples, again.num_captions) == (0, 12, 8)
    assert "12 samples in 3 shards, 0.0 MB, 8 captions" in str(again)


def test_an_unusable_shard_is_named_and_the_others_are_indexed(tars):
    (tars / "00001.tar").write_bytes((tars / "00001.tar").read_bytes()[:2000])
    os.mkfifo(tars / "00003.tar")
    report = index(tars)
    assert [fault.where for fault in report.unusable] == ["00001.tar", "00003.tar"]
    assert "truncated" in report.unusable[0].reason
    assert "is no plain file" in report.unusable[1].reason
    assert not report.is_usable
    assert "can be used when the unusable shards are gone" in str(report)
    assert index_path(tars / "00002.tar").exists()
    for tar in (tars / "00000.tar", tars / "00002.tar"):
        tar.unlink()
    with pytest.raises(ShardError, match="none of the 2 shards of .*00001.tar is truncated"):
        index(tars)


def test_another_folder_gets_links_and_indexes_and_is_used_like_the_first(tars, tmp_path):
    before = sorted(tars.iterdir())
    (tars / "00001.tar").write_bytes((tars / "00001.tar").read_bytes()[:2000])
    out = tmp_path / "deep/out"
    report = index(tars, out, num_workers=2)
    assert sorted(tars.iterdir()) == before
    assert sorted(path.name for path in out.iterdir()) == [
        *("00000.tar", "00000.tar.index", "00002.tar", "00002.tar.index")
    ]
    assert [fault.where for fault in report.unusable] == ["00001.tar"]
    assert str(tars / "00001.tar") in report.unusable[0].reason
    assert report.is_usable
    shards = ShardSet(out)
    assert len(shards) == report.num_samples == 8
    assert shards[1].media.path == str(out / "00000.tar")
    with Path(shards[1].media.path).open("rb") as file:
        content = os.pread(file.fileno(), shards[1].media.size, shards[1].media.offset)
    assert content == b"media 000000001"
    assert len(check_shards(out, show_progress=False).rows) == 8


def test_a_folder_of_links_takes_in_what_is_new(tars, tmp_path):
    out = tmp_path / "out"
    index(tars, out)
    written = index_path(out / "00000.tar").stat().st_mtime_ns
    shutil.copy(tars / "00000.tar", tars / "00007.tar")
    report = index(tars, out)
    assert (report.num_new, report.num_shards) == (1, 4)
    assert index_path(out / "00000.tar").stat().st_mtime_ns == written
    assert len(ShardSet(out)) == 16
    write_tar(tars / "00000.tar", {"other.mp4": b"x"})
    report = index(tars, out)
    assert "is stale" in report.unusable[0].reason
    assert not report.is_usable
    assert (out / "00000.tar").is_symlink()  # a run that used it must not lose it in silence


def test_a_folder_with_something_else_is_refused(tars, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").touch()
    with pytest.raises(ShardError, match=r"out exists and holds something else .*notes.txt"):
        index(tars, tmp_path / "out")
    index(tars, tmp_path / "links")
    (tmp_path / "other").mkdir()
    shutil.copy(tars / "00000.tar", tmp_path / "other")
    with pytest.raises(ShardError, match="links exists and holds something else than links"):
        index(tmp_path / "other", tmp_path / "links")


def test_a_folder_without_usable_shards_leaves_no_folder(tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/00000.tar").touch()
    with pytest.raises(ShardError, match="none of the 1 shards"):
        index(tmp_path / "tars", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tars"]


def test_a_folder_that_cannot_be_written_says_what_to_do(tars):
    # A folder in the place of the partial file stands for a read-only disk: root may write on.
    (tars / f".00000.tar.index.{os.getpid()}.partial").mkdir()
    with pytest.raises(ShardError, match=r"cannot be written .*`vatt shards build .*tars OUT`"):
        index(tars)


def test_a_link_whose_tar_is_gone_is_named(tars, tmp_path):
    index(tars, tmp_path / "out")
    (tars / "00001.tar").unlink()
    with pytest.raises(ShardError, match=r"out/00001.tar, a link to .*tars/00001.tar, cannot be"):
        ShardSet(tmp_path / "out")


def test_command_indexes_tars_in_place_or_elsewhere(tars, tmp_path, capsys):
    assert main(["shards", "build", str(tars), "--workers", "0"]) == 0
    assert "12 samples in 3 shards" in capsys.readouterr().out
    assert main(["shards", "build", str(tars), str(tars), "--workers", "0"]) == 0
    assert "0 indexes made" in capsys.readouterr().out
    assert main(["shards", "build", str(tars), str(tmp_path / "out"), "--workers", "0"]) == 0
    assert "3 shards (links)" in capsys.readouterr().out
    assert main(["shards", "build", str(tars), "--captions", "a.csv"]) == 1
    assert "--captions is for media files" in capsys.readouterr().err
    (tars / "00001.tar").write_bytes(b"")
    assert main(["shards", "build", str(tars), "--workers", "0"]) == 1
    assert "unusable: 00001.tar" in capsys.readouterr().out


def test_command_tells_media_from_shards(tars, tmp_path, capsys):
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.mp4").write_bytes(b"media")
    assert main(["shards", "build", str(tmp_path / "media")]) == 1
    assert "name the folder to make" in capsys.readouterr().err
    shutil.copy(tmp_path / "media/a.mp4", tars)
    assert main(["shards", "build", str(tars), str(tmp_path / "out"), "--no-check-media"]) == 0
    assert "1 samples in 1 shards" in capsys.readouterr().out


def test_interrupted_indexing_leaves_no_folder(tars, tmp_path):
    for number in range(10, 400):
        shutil.copy(tars / "00000.tar", tars / f"{number:05d}.tar")
    command = [sys.executable, "-m", "vatt.cli", "shards", "build", tars, tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/*.index")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"vatt: Stopped.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["tars"]
