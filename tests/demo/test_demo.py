"""`vatt demo` from nothing to a report, on a corpus that is made in seconds."""

import json
import re
import sys
from pathlib import Path

import pytest

from vatt.cli import main
from vatt.config.spaces import DIRECTIONS
from vatt.demo.linear import SOURCES
from vatt.demo.run import shuffle_captions

STAGES = {"corpus", "shards", "fit", "evaluate", "linear", "report", "total"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert main(demo(folder)) == 0
    return folder


def demo(out: Path, *more: str) -> list[str]:
    sizes = ("--num-train", "24", "--num-renderings", "1")
    return ["demo", "--out", str(out), "--config", "tiny", "--seed", "3", *sizes, *more]


@pytest.mark.slow
def test_the_demo_writes_metrics_of_all_directions(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    for direction in DIRECTIONS:
        assert metrics[direction].keys() >= {"R@1", "R@5", "R@10", "MedR"}
    assert metrics["audio_to_video"]["ceiling"] == metrics["oracles"]["shape+motion"]
    assert max(metrics["oracles"].values()) <= 45
    assert metrics["seconds"].keys() == STAGES
    assert (metrics["num_candidates"], metrics["seed"]) == (100, 3)
    assert metrics["training"]["steps"] == 20


@pytest.mark.slow
def test_the_demo_says_what_a_linear_classifier_reads_from_its_features(out: Path) -> None:
    found = json.loads((out / "metrics.json").read_text())["linear_evaluation"]
    assert (found["num_train"], found["num_test"]) == (24, 100)
    assert [(row["modality"], row["attribute"]) for row in found["rows"]] == [
        *(("video", name) for name in ("shape", "colour", "motion", "sound")),
        *(("audio", name) for name in ("shape", "motion", "sound")),
    ]
    assert all(0 <= row[source] <= 100 for row in found["rows"] for source in SOURCES)
    page = (out / "report.html").read_text()
    assert "features of 24 training videos" in page
    assert "raw input" in page


@pytest.mark.slow
def test_the_demo_writes_a_report_that_needs_nothing_else(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("data:") > 10
    assert 'src="http' not in page
    assert "learned" in page.split("<nav")[0]  # the verdict
    assert "Search by picture" in page
    assert "seed" in page.lower()


@pytest.mark.slow
def test_the_model_of_the_demo_is_a_folder_that_loads(out: Path) -> None:
    from vatt.models.checkpoint import load_model
    from vatt.preprocess.tokenizer import Tokenizer

    model = load_model(out / "model")
    tokenizer = Tokenizer.load(out / "model" / "tokenizer.json")
    ids = tokenizer.encode(["a red ball is growing"], model.config.text.max_words)
    assert model.embed_text(ids)["vt"].shape == (1, model.config.head.d_vt)
    assert json.loads((out / "model" / "preprocess.json").read_text())["video"]["num_frames"]
    card = (out / "model" / "README.md").read_text()
    steps = json.loads((out / "metrics.json").read_text())["training"]["steps"]
    assert f"| steps | {steps:.0f} |" in card
    assert "| data | `shards/train` (" in card


@pytest.mark.slow
def test_a_second_demo_makes_nothing_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [*(out / "data").rglob("*.mp4"), *(out / "data").rglob("*.tar")]
    times = [path.stat().st_mtime_ns for path in made]
    before = json.loads((out / "metrics.json").read_text())
    assert main(demo(out)) == 0
    assert [path.stat().st_mtime_ns for path in made] == times
    after = json.loads((out / "metrics.json").read_text())
    assert after["text_to_video"] == before["text_to_video"]
    assert after["linear_evaluation"] == before["linear_evaluation"]
    assert after["training"]["steps"] == before["training"]["steps"]
    printed = capsys.readouterr().out
    assert "Look at" in printed
    assert "audio: sound" in printed


@pytest.mark.slow
def test_a_run_never_passes_for_one_with_other_options(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*demo(out), "--shuffle-captions"]) == 1
    message = capsys.readouterr().err
    assert "holds a demo with shuffle_captions False, not True" in message
    assert "--out" in message


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--num-train", "0"), "must be at least 1"),
        (("--model.init_args.schedule.warmup_steps", "20"), "warmup_steps .20. < max_steps .20"),
        (("--model.init_args.model.arrangement", "agnositc"), "agnositc"),
    ],
)
def test_values_that_cannot_work_are_refused_before_any_work(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: tuple[str, str],
    message: str,
) -> None:
    assert main(demo(tmp_path / "run", *option)) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(demo(tmp_path / "run", "--run.tensorboard", "true")) == 1
    assert "run.tensorboard needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_mistyped_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(demo(tmp_path / "run", "--trainer.max_stepps", "3")) == 2
    assert "max_stepps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # before any work was done


def test_shuffled_captions_are_those_of_other_videos(tmp_path: Path) -> None:
    lines = [{"file": f"{i}.mp4", "segments": [{"text": str(i)}]} for i in range(50)]
    source, target = tmp_path / "captions.jsonl", tmp_path / "shuffled.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shuffle_captions(source, target)
    shuffled = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["file"] for line in shuffled] == [line["file"] for line in lines]
    texts = [line["segments"][0]["text"] for line in shuffled]
    assert sorted(texts) == sorted(str(i) for i in range(50))
    assert sum(text == str(i) for i, text in enumerate(texts)) < 10
