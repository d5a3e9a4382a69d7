"""`vatt report`: the page of a run, of what it has and of what it lacks."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from media_files import write_noise_clip

from vatt.cli import main
from vatt.packing.build import build_shards
from vatt.runs.report_facts import training_figures


def write_page(run: Path, page: Path, *more: str | Path) -> str:
    """Text of the report of a run."""
    options = ["-o", str(page), "--workers", "0", "--device", "cpu", *map(str, more)]
    assert main(["report", str(run), *options]) == 0
    return page.read_text(encoding="utf-8")


def payload_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def words_of(page: str) -> str:
    text = re.sub(r"<[^>]*>", " ", page.split("<script")[0].split("</style>")[-1])
    return " ".join(text.split())


@pytest.fixture(scope="module")
def page(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_page(trained_run, folder / "report.html", "--clips", "20")


def test_the_page_searches_the_validation_data_in_every_direction(page: str) -> None:
    words, payload = words_of(page), payload_of(page)
    assert "Clips of shards/validation: of each file the" in words
    assert "Clips searched 20" in words
    for heading in (
        *("A sentence finds its clip", "A clip finds its sentence", "A sound finds its clip"),
        *("A clip finds its sound", "A sentence finds its sound", "A sound finds its sentence"),
    ):
        assert heading in words
    sections = re.findall(r'<section id="([a-z-]+)"', page)
    assert sections[:5] == ["result", "clips", "by-text", "by-audio", "by-video"]
    assert {"training", "similarity", "spaces", "attention", "run"} <= set(sections)
    assert payload["maps"].keys() == {"text_to_video", "audio_to_video", "text_to_audio"}
    assert len(payload["clips"]) == 20
    assert all(clip["media"] and clip["poster"] and clip["caption"] for clip in payload["clips"])


def test_the_verdict_names_queries_interval_and_chance(page: str) -> None:
    verdict = words_of(page).split("RETRIEVAL REPORT")[-1].split("Steps")[0]
    assert re.search(r"(Nothing shows that t|T)he model has learned more than chance :", verdict)
    assert re.search(r"of \d+ queries \(95 % interval [\d.]+ to [\d.]+ %\)", verdict)
    assert "guessing would get 5 %" in verdict


def test_the_page_has_the_curves_of_the_log_and_the_settings(page: str) -> None:
    words, charts = words_of(page), payload_of(page)["charts"]
    titles = [chart["title"] for chart in charts]
    assert titles[:2] == ["Loss of each pair", "Found first on the validation set"]
    assert "Learning rate" in titles
    assert charts[1]["series"][-1]["name"] == "chance"
    assert charts[1]["least_top"] == 5 * charts[1]["series"][-1]["points"][0][1]
    for words_of_fact in (
        *("Steps 10", "clips per step", "learning rate 0.001", "Data trained on: shards/train"),
        *("clips 24", "captions", "of the clips have one", "torch", "arrangement:"),
    ):
        assert words_of_fact in words, words_of_fact


def test_the_page_tells_nothing_of_the_folders_of_this_machine(
    page: str, trained_run: Path
) -> None:
    assert str(trained_run.parent) not in page


def test_a_run_without_validation_is_shown_on_clips_that_it_was_trained_on(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("validation: .*", "validation: null", config))
    words = words_of(write_page(run, tmp_path / "report.html", "--clips", "4"))
    assert "The model was trained on the 24 clips of shards/train: what is measured" in words
    printed = capsys.readouterr().out
    assert "With 4 queries nothing can be said" in printed
    assert f"{tmp_path / 'report.html'}: open it in a browser" in printed


@pytest.fixture(scope="module")
def bare_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips with sound and one without, none with a caption, and a broken one."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("one", "two"):
        write_noise_clip(folder / f"{name}.mp4", num_frames=40)
    write_noise_clip(folder / "silent.mp4", num_frames=40, silent=True)
    (folder / "broken.mp4").write_bytes(b"no video")
    build_shards(folder, folder / "shards", check_media=False, show_progress=False)
    return folder / "shards"


def test_clips_without_captions_and_sound_leave_out_what_needs_them(
    trained_run: Path, bare_shards: Path, tmp_path: Path
) -> None:
    page = write_page(trained_run, tmp_path / "report.html", "--data", bare_shards)
    words = words_of(page)
    assert "No clip has a caption that the model can read" in words
    assert "Clips that could not be read and are left out: 1." in words
    assert payload_of(page)["maps"].keys() == {"audio_to_video"}
    assert "A sentence finds" not in words
    assert "captions none" in words
    assert 'id="by-text"' not in page
    assert sum(clip["spectrogram"] is None for clip in payload_of(page)["clips"]) == 1


def test_an_unfinished_run_shows_what_it_has(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    page = write_page(run, tmp_path / "curves.html")
    assert "no checkpoint yet" in words_of(page)
    assert re.findall(r'<section id="([a-z-]+)"', page) == ["training", "run"]
    (run / "metrics.csv").unlink()
    words = words_of(write_page(run, tmp_path / "nothing.html"))
    assert "no rows in metrics.csv yet" in words
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("max_steps: 10", "max_steps: 500"))
    shutil.copytree(trained_run / "checkpoints", run / "checkpoints")
    words = words_of(write_page(run, tmp_path / "half.html", "--clips", "3"))
    assert "The run is not finished: step 10 of 500." in words


def test_no_run_and_lost_shards_are_one_sentence_each(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert f"vatt: {tmp_path} is no run folder: config.yaml is missing\n" in capsys.readouterr().err
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("validation: .*", "validation: gone/away", config))
    assert main(["report", str(run), "--workers", "0"]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"vatt: no shard folder gone/away: .*; --data SHARDS gives .*\n", error)
    assert main(["report", str(run), "-o", str(tmp_path / "run" / "config.yaml")]) == 2
    assert "is no page" in capsys.readouterr().err


def test_speed_is_weighted_by_the_steps_that_a_row_stands_for() -> None:
    row = {"perf/clips_per_second": "8", "perf/data_wait_share": "0.5"}
    history = [
        {"step": "9", "perf/step_seconds": "1.0", **row},
        {"step": "10", "val/text_to_video/R@1": "3"},
        {"step": "12", "perf/step_seconds": "2.0", **row},
    ]
    figures = {"steps": 13.0, "seconds": 16.0, "clips_per_second": 8.0, "data_wait_share": 0.5}
    assert training_figures(history) == figures
    assert training_figures([])["seconds"] == 0.0
