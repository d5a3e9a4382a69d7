"""`vatt extract`: every input once, whatever stops it, in how many processes it runs."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from media_files import KINDS, make_file
from pyarrow import parquet

from vatt import VATT, FeatureExtractor, Features, Tokenizer, preset, save_model
from vatt.cli import main
from vatt.config.options import ExtractOptions
from vatt.features.extract import only_run_in
from vatt.features.extraction import Extraction
from vatt.features.inputs import Item, find_items
from vatt.features.stores import ParquetStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(VATT(preset("tiny")), folder, Tokenizer.train(["a dog barks"], 20))
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """Four clips in two folders, a file of 3 s, and one that is none."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "talks").mkdir()
    for number, path in enumerate(sorted((tiny_corpus / "train").glob("*.mp4"))[:4]):
        shutil.copy(path, folder / ("talks" if number % 2 else "") / path.name)
    make_file(folder / "plain.mp4", KINDS["plain.mp4"])
    (folder / "broken.mp4").write_bytes(b"no media" * 100)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder)}


def extract(*arguments: str | Path) -> int:
    return main(["extract", *map(str, arguments)])


def test_every_file_of_a_folder_gets_its_features(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (media, "-o", out, "--model", model, "--hop-seconds", "0.2", "--workers", "0")
    assert extract(*arguments, "--batch-size", "4") == 0
    made = [f"{path.relative_to(media)}.npz" for path in media.rglob("*.mp4")]
    made.remove("broken.mp4.npz")
    assert names_in(out) == sorted([*made, "failures.jsonl"])
    said = capsys.readouterr().out
    assert "5 made" in said
    assert "1 failed" in said
    assert "broken.mp4: is damaged" in said
    assert "vectors of video_va differ by" in said
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [row["source"] for row in failures] == ["broken.mp4"]
    extractor = FeatureExtractor.from_pretrained(model, device="cpu")
    for name in made:
        kept = Features.load(out / name)
        expected = extractor.extract(media / name.removesuffix(".npz"), hop_seconds=0.2)
        assert kept.start_seconds.equal(expected.start_seconds)
        assert kept.end_seconds.equal(expected.end_seconds)
        assert set(kept.arrays) == set(expected.arrays)
        for array in kept.arrays:
            assert torch.allclose(kept[array], expected[array], atol=1e-5), (name, array)
        assert kept.metadata["source"] == name.removesuffix(".npz")
    assert len(Features.load(out / "plain.mp4.npz")) == 12  # in three batches


@pytest.mark.slow
def test_a_second_run_makes_only_what_is_missing_or_has_changed(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "media", tmp_path / "out"
    shutil.copytree(media, source)
    arguments = (source, "-o", out, "--model", model, "--workers", "0")
    assert extract(*arguments, "--strict") == 1
    before = contents(out)
    times = {name: (out / name).stat().st_mtime_ns for name in before}
    capsys.readouterr()
    assert extract(*arguments) == 0
    assert "0 made (0 windows" in capsys.readouterr().out
    assert {name: (out / name).stat().st_mtime_ns for name in before if "npz" in name} == {
        name: value for name, value in times.items() if "npz" in name
    }
    (out / "plain.mp4.npz").unlink()
    shortened = next((out / "talks").iterdir())
    shortened.write_bytes(shortened.read_bytes()[:5000])
    (source / "broken.mp4").unlink()
    shutil.copy(source / "plain.mp4", source / "new.mp4")
    touched = next(path for path in source.iterdir() if path.name.startswith("0"))
    os.utime(touched, ns=(0, 0))
    assert extract(*arguments, "--strict") == 0
    assert "4 made" in capsys.readouterr().out
    assert "failures.jsonl" not in names_in(out)
    assert extract(*arguments, "--space", "vt", "--replace") == 0
    assert "s), 6 of them in place of others, 0 were there" in capsys.readouterr().out
    assert list(Features.load(out / "plain.mp4.npz").arrays) == ["video_vt", "audio_vt"]
    torch.manual_seed(1)
    save_model(VATT(preset("tiny")), tmp_path / "other")
    arguments += ("--space", "vt", "--model", tmp_path / "other")
    before = contents(out)
    assert extract(*arguments) == 2
    assert (
        "was made with other settings (model): give another folder, or" in capsys.readouterr().err
    )
    assert contents(out) == before
    assert extract(*arguments, "--replace") == 0
    assert "6 made" in capsys.readouterr().out


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(model: Path, media: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        assert (
            extract(
                *(media, "-o", tmp_path / str(workers), "--model", model, "--batch-size", "2"),
                *("--hop-seconds", "0.3", "--format", "safetensors", "--workers", workers),
            )
            == 0
        )
    assert contents(tmp_path / "0") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "0")) == 6


def command(media: Path, out: Path, model: Path) -> list[str]:
    arguments = ["extract", media, "-o", out, "--model", model, "--hop-seconds", "0.1"]
    more = ["--batch-size", "1", "--workers", "0"]
    return [sys.executable, "-m", "vatt.cli", *map(str, arguments), *more]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(
    model: Path, media: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert extract(*command(media, whole, model)[4:]) == 0
    process = subprocess.Popen(command(media, killed, model), env=environment())
    while not list(killed.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    partial = contents(killed)
    assert 0 < len(partial) < 6
    (killed / ".plain.mp4.npz.123.partial").touch()  # of a process that was killed
    assert extract(*command(media, killed, model)[4:]) == 0
    assert contents(killed) == contents(whole)
    assert partial.items() <= contents(whole).items()


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_lives(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(media, tmp_path, model)[4:]
    with only_run_in(tmp_path):
        assert extract(*arguments) == 1
        said = capsys.readouterr().err
        assert f"another run writes into {tmp_path}: wait for it" in said
        assert said.count("\n") == 1
        assert names_in(tmp_path) == []
    assert extract(*arguments) == 0


@pytest.mark.slow
@pytest.mark.ddp
def test_several_processes_share_the_work_and_give_the_result_of_one(
    model: Path, media: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            command(media, two, model),
            env=environment(**group, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert extract(*command(media, one, model)[4:]) == 0
    said = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert "5 made" in said[0]
    assert said[1] == ""
    assert contents(two) == contents(one)


def test_a_parquet_data_set_holds_a_row_for_each_window_and_is_resumed(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "media", tmp_path / "out"
    shutil.copytree(media, source)
    shutil.copy(source / "plain.mp4", tmp_path / "late.mp4")
    (source / "plain.mp4").unlink()
    arguments = (source, "-o", out, "--model", model, "--workers", "0", "--format", "parquet")
    assert extract(*arguments) == 0
    first = contents(out)
    shutil.copy(tmp_path / "late.mp4", source / "late.mp4")
    capsys.readouterr()
    assert extract(*arguments) == 0
    assert "1 made" in capsys.readouterr().out
    assert first.items() <= contents(out).items()
    rows = parquet.read_table(sorted(out.glob("*.parquet"))).to_pylist()
    extractor = FeatureExtractor.from_pretrained(model, device="cpu")
    for name in {row["source"] for row in rows}:
        expected = extractor.extract(source / name)
        own = [row for row in rows if row["source"] == name]
        assert [row["start_seconds"] for row in own] == expected.start_seconds.tolist()
        assert [row["end_seconds"] for row in own] == expected.end_seconds.tolist()
        for array in ("video_va", "video_vt", "audio_va", "audio_vt"):
            if array in expected.arrays:
                kept = torch.tensor([row[array] for row in own])
                assert torch.allclose(kept, expected[array], atol=1e-5)
            else:
                assert all(row[array] is None for row in own)
    assert len({row["source"] for row in rows}) == 5
    os.utime(source / "late.mp4", ns=(0, 0))
    assert extract(*arguments) == 0
    assert "1 made" in capsys.readouterr().out
    again = parquet.read_table(sorted(out.glob("*.parquet"))).to_pylist()
    assert len(again) == len(rows)
    whole = contents(out)
    assert extract(*arguments, "--hop-seconds", "0.4") == 2
    assert "other settings (hop_seconds)" in capsys.readouterr().err
    assert contents(out) == whole
    assert extract(*arguments, "--hop-seconds", "0.4", "--replace") == 0
    assert "5 of them in place of others" in capsys.readouterr().out
    assert extract(*arguments, "--tokens", "--space", "none") == 1
    assert "holds no tokens" in capsys.readouterr().err


class Interrupted(list[Item]):
    """Inputs amid which Ctrl-C is pressed."""

    def __iter__(self) -> Iterator[Item]:
        yield from self[:3]
        raise KeyboardInterrupt


def test_a_parquet_data_set_keeps_what_was_made_before_ctrl_c(
    model: Path, media: Path, tmp_path: Path
) -> None:
    extractor = FeatureExtractor.from_pretrained(model, device="cpu")
    items = Interrupted(find_items([f"{media}/**/[0p]*.mp4"]))
    extraction = Extraction(
        extractor, tmp_path, ExtractOptions(num_workers=0, file_format="parquet")
    )
    with pytest.raises(KeyboardInterrupt):
        extraction.run(items)
    store = ParquetStore(tmp_path, {}, "")
    held = [item.name for item in items[:5] if store.holds(item.name, item.locate()[1])]
    assert held == [item.name for item in items[:3]]


@pytest.mark.parametrize(("part_seconds", "num_parts"), [(0, 3), (60, 1)])
def test_a_part_is_written_when_it_is_late_even_if_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_seconds: float, num_parts: int
) -> None:
    monkeypatch.setattr("vatt.features.stores.PART_SECONDS", part_seconds)
    store = ParquetStore(tmp_path, {"video": 3}, "")
    one = torch.ones(1)
    features = Features(
        arrays={"video": torch.ones(1, 3)},
        start_seconds=one.double(),
        end_seconds=one.double(),
        coverage={"video": one},
    )
    with closing(store):
        for name in "abc":
            store.write(name, "", features)
    assert len(names_in(tmp_path)) == num_parts


def test_inputs_are_folders_files_patterns_lists_and_shards(
    media: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    talks = sorted(path.name for path in (media / "talks").iterdir())
    folder = find_items([str(media)])
    assert [item.name for item in folder] == sorted(
        path.relative_to(media).as_posix() for path in media.rglob("*.mp4")
    )
    assert find_items([str(media / "plain.mp4")])[0].name == "plain.mp4"
    pattern = find_items([f"{media}/**/*.mp4"])
    assert [item.path for item in pattern] == sorted(map(str, media.rglob("*.mp4")))
    assert pattern[0].name == pattern[0].path.lstrip("/")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{media}/plain.mp4\n\nbelow/a.mp4\nhttps://host/b.mp4\n")
    items = {item.name: item.path for item in find_items([str(listed)])}
    assert items == {
        f"{media}/plain.mp4".lstrip("/"): f"{media}/plain.mp4",
        "below/a.mp4": str(tmp_path / "below" / "a.mp4"),
        "host/b.mp4": "https://host/b.mp4",
    }
    shards = find_items([str(tiny_shards / "train")])
    assert len(shards) == 24
    window, stamp = shards[0].locate()
    assert shards[0].name.startswith("00000/")
    assert stamp == f"{window.offset}+{window.size}"
    both = find_items([str(media / "talks"), str(media / "plain.mp4")])
    assert [item.name for item in both] == sorted([*talks, "plain.mp4"])


def test_shards_are_extracted_as_they_are(
    model: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (tiny_shards / "train", "-o", tmp_path, "--model", model, "--workers", "0")
    assert extract(*arguments, "--modalities", "video", "--space", "none") == 0
    assert "24 made" in capsys.readouterr().out
    item = find_items([str(tiny_shards / "train")])[5]
    expected = FeatureExtractor.from_pretrained(model, device="cpu").extract(
        item.locate()[0], modalities=["video"], space=None
    )
    kept = Features.load(tmp_path / f"{item.name}.npz")
    assert list(kept.arrays) == ["video"]
    assert torch.allclose(kept["video"], expected["video"], atol=1e-5)


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("absent", [], "there is no .*absent: correct the path"),
        ("empty", [], "empty holds no media"),
        ("*.mkv", [], "names no media"),
        ("nothing.txt", [], "names no media: correct the path, pattern or list"),
        ("a.mp4", ["--space", "joint"], "no space 'joint' for video, it has va and vt"),
        ("a.mp4", ["--tokens", "--space", "vt"], "tokens are of the backbone"),
        ("a.mp4", ["--hop-seconds", "0"], "hop_seconds must be above 0"),
        ("a.mp4", ["--model", "absent"], "no model at absent"),
        ("a.mp4", ["--device", "tpux"], "no device 'tpux'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source, more, message
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.txt").write_text("\n")
    (tmp_path / "a.mp4").write_bytes(b"no media")
    out = tmp_path / "out"
    assert extract(tmp_path / source, "-o", out, "--model", model, *more) == 1
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1
    assert not out.exists()


def test_two_inputs_of_one_name_are_refused(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(media / "plain.mp4", tmp_path / "plain.mp4")
    sources = (media / "plain.mp4", tmp_path / "plain.mp4")
    assert extract(*sources, "-o", tmp_path / "out", "--model", model) == 1
    assert "two inputs are called plain.mp4" in capsys.readouterr().err
    assert extract(sources[0], sources[0], "-o", tmp_path / "out", "--model", model) == 0
