"""The comparison of fine-tuning with training from scratch, on the demo's corpus."""

import csv
import json
from pathlib import Path

import finetune_demo
import pytest

from vatt.config.presets import preset
from vatt.config.shipped import given_values
from vatt.models.checkpoint import load_model, save_model
from vatt.network.model import VATT
from vatt.runs.classifier_defaults import with_classifier

MODEL = "model.init_args.model"


@pytest.fixture(scope="module")
def demo(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script needs of a finished demo."""
    folder = tmp_path_factory.mktemp("demo")
    save_model(VATT(preset("tiny")), folder / "model")
    (folder / "data").mkdir()
    (folder / "data" / "corpus").symlink_to(tiny_corpus)
    return folder


def test_each_class_has_as_many_files_as_asked_for(tiny_corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "train.csv"
    num_files = finetune_demo.write_labels(tiny_corpus / "train", path, "colour", limit=2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == num_files
    labels = [row["label"] for row in rows]
    assert max(labels.count(label) for label in labels) == 2
    shown = {}
    for line in (tiny_corpus / "train" / "captions.jsonl").read_text().splitlines():
        shown[json.loads(line)["file"]] = json.loads(line)["colour"]
    assert all(shown[Path(row["file"]).name] == row["label"] for row in rows)


def test_without_a_demo_it_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--demo", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert finetune_demo.main(out) == 1
    assert "run scripts/demo.sh, or give --demo" in capsys.readouterr().err


def test_from_scratch_the_positions_are_those_of_the_clips_asked_for(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("file,label\na.mp4,x\nb.mp4,y\n")
    arguments = ["fit", "--model.class_path=vatt.training.finetune.FinetuneModule"]
    arguments.append(f"--{MODEL}.video.image_size=32")
    arguments.append(f"--data.init_args.train={tmp_path / 'train.csv'}")
    defaults = with_classifier(arguments, given_values(arguments))[1]
    overlay = json.loads(defaults.removeprefix("--config="))
    assert overlay["model"]["init_args"]["model"]["video"].get("position_grid") is None


@pytest.mark.slow
def test_both_starts_train_the_same_network_by_the_same_recipe(
    demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [
        *("--demo", str(demo), "--out", str(tmp_path), "--per-class", "2", "--steps", "4"),
        *("--batch-size", "4", "--learning-rates", "0.01"),
    ]
    assert finetune_demo.main(options) == 0
    printed = capfd.readouterr().out
    assert "pre-trained   learning rate 0.01" in printed
    assert "from scratch  learning rate 0.01" in printed
    runs = sorted(path.parent for path in tmp_path.rglob("config.yaml"))
    assert len(runs) == 2
    networks = [load_model(run / "checkpoints" / "last.ckpt") for run in runs]
    shapes = [{n: v.shape for n, v in network.state_dict().items()} for network in networks]
    assert shapes[0] == shapes[1]
    assert finetune_demo.main(options) == 0
    assert "Training" not in capfd.readouterr().err  # what is done is not done again
