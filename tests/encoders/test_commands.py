"""The commands with models of others: extraction, its resumption, index and search."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from media_files import Kind, make_file, make_still

from vatt import FeatureExtractor, Features, Index
from vatt.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos and a picture of different sizes, and a file that is no media."""
    folder = tmp_path_factory.mktemp("media")
    make_file(folder / "long.mp4", Kind(video_seconds=9.0, audio_seconds=9.0))
    make_file(folder / "first.mp4", Kind(video_seconds=1.0, audio_seconds=1.0, audio=None))
    make_still(folder / "still.png", "png", width=60, height=80)
    (folder / "broken.mp4").write_bytes(b"no media" * 100)
    return folder


def run(*arguments: str | Path) -> int:
    return main([str(one) for one in arguments])


def arguments_of(media: Path, out: Path, model: Path) -> list[str]:
    return [*map(str, ("extract", media, "-o", out, "--model", model, "--workers", "0"))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_words_and_files_find_windows_of_videos_by_a_clip_model(
    saved: Callable[[str], Path],
    media: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, index = tmp_path / "features", tmp_path / "index"
    clip = shutil.copytree(saved("clip"), tmp_path / "clip")
    assert run(*arguments_of(media, out, clip)) == 0
    text = capsys.readouterr().out
    assert "3 made (5 windows" in text
    assert "broken.mp4: is damaged" in text
    extractor = FeatureExtractor.from_pretrained(clip, device="cpu")
    for name in ("long.mp4", "first.mp4", "still.png"):
        stored, expected = Features.load(out / f"{name}.npz"), extractor.extract(media / name)
        assert [*stored.arrays] == ["video_joint"]
        assert torch.equal(stored["video_joint"], expected["video_joint"])
        assert stored.metadata["model"] == str(clip)
    assert run("index", out, "-o", index) == 0
    capsys.readouterr()
    assert run("search", index, "a", "dog", "barks", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    cosines = extractor.similarity(text="a dog barks", video=media / "still.png")[0, 0].item()
    scores = {hit["source"]: hit["score"] for hit in found["hits"]}
    assert scores["still.png"] == pytest.approx(cosines, abs=1e-5)
    assert [*scores.values()] == sorted(scores.values(), reverse=True)
    hits = Index(index, device="cpu").search("a dog barks", k=3, distinct="file")
    assert {hit.source: hit.score for hit in hits} == pytest.approx(scores, abs=1e-5)
    best = Index(index, device="cpu").search(video=media / "still.png")[0]
    assert (best.source, round(best.score, 4)) == ("still.png", 1.0)
    assert run("search", index, "a dog", "--model", saved("siglip")) == 2
    assert "siglip is not the model that made the features" in capsys.readouterr().err
    assert run("search", index, "a dog", "--modality", "audio") == 2
    assert "the index has no audio, it has video_joint" in capsys.readouterr().err
    assert run(*arguments_of(media, out, saved("siglip"))) == 2
    assert "was made with other settings (model)" in capsys.readouterr().err


def test_words_find_windows_of_sound_by_a_clap_model(
    saved: Callable[[str], Path],
    media: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, index = tmp_path / "features", tmp_path / "index"
    assert run(*arguments_of(media, out, saved("clap")), "--dtype", "bfloat16") == 0
    text = capsys.readouterr().out
    assert "1 made (9 windows" in text
    assert "first.mp4: has no sound" in text
    assert run("index", out, "-o", index) == 0
    hits = Index(index, device="cpu").search("a dog barks")
    assert len(hits) == 5
    assert {hit.source for hit in hits} == {"long.mp4"}


def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(
    saved: Callable[[str], Path], media: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    many = ("--hop-seconds", "0.1", "--batch-size", "2")
    assert run(*arguments_of(media, whole, saved("clip")), *many) == 0
    call = [sys.executable, "-m", "vatt.cli", *arguments_of(media, killed, saved("clip")), *many]
    process = subprocess.Popen(call, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not list(killed.glob("*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(contents(killed)) < 4
    assert run(*arguments_of(media, killed, saved("clip")), *many) == 0
    assert contents(killed) == contents(whole)


def test_features_in_parquet_and_of_another_window_belong_to_the_model(
    saved: Callable[[str], Path],
    media: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = saved("sentence_clip")
    options = ("--window-seconds", "2", "--hop-seconds", "1", "--format", "parquet")
    assert run(*arguments_of(media, tmp_path / "out", model), *options) == 0
    assert "3 made (10 windows" in capsys.readouterr().out
    assert run("index", tmp_path / "out", "-o", tmp_path / "index") == 0
    hits = Index(tmp_path / "index", device="cpu").search("rain falls", distinct="window", k=20)
    assert {round(hit.end_seconds - hit.start_seconds, 3) for hit in hits} <= {0.0, 1.0, 2.0}
    assert len(hits) == 10
