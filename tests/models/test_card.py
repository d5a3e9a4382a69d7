"""Model cards say what configuration, run and evaluations say, and nothing else."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from vatt.cli import main
from vatt.config.presets import as_classifier, preset
from vatt.encoders.own import VATTEncoder
from vatt.errors import UserError
from vatt.evaluation.results import Results, write_results
from vatt.models.card import read_card, write_model_card
from vatt.models.checkpoint import load_model, save_model
from vatt.models.export import export_model
from vatt.models.training_facts import read_run
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer

TINY = preset("tiny")
CONFIG = {
    "seed_everything": 3,
    "trainer": {"precision": "bf16-mixed", "max_steps": 900},
    "model": {
        "class_path": "vatt.training.pretrain.PretrainModule",
        "init_args": {
            "init_from": "/home/someone/models/start",
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        },
    },
    "data": {
        "class_path": "datamodules.pretrain.PretrainData",
        "init_args": {
            "train": ["/home/someone/shards/train", "s3://bucket/shards"],
            "validation": "/home/someone/shards/validation",
            "batch_size": 64,
        },
    },
}
ENVIRONMENT = {
    "vatt": "0.1.0",
    "torch": "2.13.0",
    "cuda": None,
    "command": "vatt fit --config /home/someone/vatt/configs/demo.yaml --config=my.yaml",
    "git_commit": "abc123",
    "devices": ["NVIDIA H100"],
}
SIZE = "val/text_to_video/num_queries,val/text_to_video/num_candidates"
METRICS = f"""step,train/loss,val/text_to_video/R@1,{SIZE},val/loss
399,2.5,50.0,4.0,13.0,
799,2.0,60.123456,4.0,13.0,nan
809,1.9,,,,
1199,1.0,99.0,4.0,13.0,
"""


def write_run(folder: Path, model: VATT, *, steps: int = 810) -> Path:
    """A run as `vatt fit` leaves it, whose last validation came after its checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    weights = {f"network.{name}": value for name, value in model.state_dict().items()}
    torch.save(
        {"vatt_config": model.config.to_dict(), "state_dict": weights, "global_step": steps},
        folder / "checkpoints" / "last.ckpt",
    )
    Tokenizer.train(["a dog barks"], 20).save(folder / "tokenizer.json")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "metrics.csv").write_text(METRICS)
    return folder


def write_result(folder: Path, model: VATT, value: float = 41.25) -> Path:
    results = Results(
        task="retrieval",
        data_set="msrvtt-1k",
        protocol={},
        data={},
        num_items=3,
        num_listed=3,
        metrics={
            "text_to_video, embeddings": {
                "R@1": value,
                "MedR": float("nan"),
                "num_queries": 3,
                "num_candidates": 2,
            }
        },
    )
    return write_results(results, VATTEncoder(model, None, "cpu"), "somewhere", folder)


@pytest.fixture
def model() -> VATT:
    torch.manual_seed(0)
    return VATT(TINY).eval()


def head_of(folder: Path) -> dict[str, Any]:
    """The YAML before the text, as the Hub reads it."""
    text = (folder / "README.md").read_text()
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n\n#", text, re.DOTALL)[1])


def test_a_run_says_what_it_did_up_to_its_checkpoint(tmp_path: Path, model: VATT) -> None:
    assert read_run(write_run(tmp_path / "run", model)) == {
        "data": [{"name": "shards/train"}, {"name": "s3://bucket/shards"}],
        "batch_size": 64,
        "started_from": "models/start",
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "precision": "bf16-mixed",
        "seed": 3,
        "validation_set": "shards/validation",
        "configs": ["my", "demo"],
        "devices": ["NVIDIA H100"],
        "versions": {"vatt": "0.1.0", "torch": "2.13.0"},
        "git_commit": "abc123",
        "steps": 810,
        "validation": {
            "text_to_video/R@1": 60.1235,
            "text_to_video/num_queries": 4.0,
            "text_to_video/num_candidates": 13.0,
        },
        "validation_step": 800,
    }


def test_what_a_resumed_run_changed_counts(tmp_path: Path, model: VATT) -> None:
    run = write_run(tmp_path / "run", model)
    for number in (2, 10):
        config = {"seed_everything": number, "data": {"init_args": {"train": {"a/b": 1.0}}}}
        (run / f"config.resume-{number}.yaml").write_text(yaml.safe_dump(config))
    resumed = {"git_commit": "def", "command": "vatt fit --config=run/config.yaml"}
    (run / "environment.resume-10.json").write_text(json.dumps(resumed))
    facts = read_run(run)
    assert facts["configs"] == ["my", "demo"]
    assert (facts["seed"], facts["git_commit"]) == (10, "def")
    assert facts["data"] == [{"name": "a/b"}]
    assert "batch_size" not in facts


def test_clips_are_counted_where_the_indexes_are_at_hand(
    tmp_path: Path, model: VATT, tiny_shards: Path
) -> None:
    run = write_run(tmp_path / "run", model)
    config = {"data": {"init_args": {"train": str(tiny_shards / "train")}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (one,) = read_run(run)["data"]
    assert (one["name"], one["clips"]) == ("shards/train", 24)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", "a: [", "config.yaml is not YAML"),
        ("config.yaml", "- 1", "config.yaml holds no settings"),
        ("metrics.csv", "step,val/loss\none,2\n", "is not the metrics of a run"),
        ("environment.json", "{", "environment.json is not JSON"),
    ],
)
def test_a_damaged_run_is_named(
    tmp_path: Path, model: VATT, name: str, content: str, sentence: str
) -> None:
    run = write_run(tmp_path / "run", model)
    (run / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_run(run)


@pytest.mark.parametrize("source", ["run", "run/checkpoints/last.ckpt"])
def test_the_card_of_a_run_is_filled_from_it(tmp_path: Path, model: VATT, source: str) -> None:
    write_run(tmp_path / "run", model)
    out = tmp_path / "my-model"
    result = write_result(tmp_path / "results", model)
    export_model(tmp_path / source, out, formats=["model"], licence="apache-2.0", results=[result])
    head = head_of(out)
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "vatt"
    assert head["pipeline_tag"] == "feature-extraction"
    assert head["tags"] == ["vatt", "video", "audio", "text"]
    data = ModelCard((out / "README.md").read_text()).data
    assert data.model_name == "my-model"
    assert [(one.dataset_name, one.metric_name, one.metric_value) for one in data.eval_results] == [
        ("shards/validation", "text_to_video/R@1", 60.1235),
        ("msrvtt-1k", "text_to_video, embeddings, R@1", 41.25),
    ]
    text = (out / "README.md").read_text()
    assert "| data | `shards/train`, `s3://bucket/shards` |" in text
    assert "| steps | 810 |" in text
    assert "after 800 steps, on `shards/validation`" in text
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in text
    row = "| text_to_video/R@1 | 60.12 | 4 queries among 13 clips, chance 7.69 % |"
    assert f"\n\n| | | |\n|---|---|---|\n{row}\n" in text
    row = "| text_to_video, embeddings, R@1 | 41.25 | 3 queries among 2 clips, chance 50 % |"
    assert f"\n\n| | | |\n|---|---|---|\n{row}\n" in text
    assert "num_queries |" not in text
    assert "Not recorded" not in text
    assert "/home/someone" not in text
    assert (out / "tokenizer.json").is_file()


def test_what_is_not_known_is_left_out_and_said_so(tmp_path: Path, model: VATT) -> None:
    save_model(model, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", formats=["model"])
    head, text = head_of(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    assert not {"license", "model-index", "vatt"} & head.keys()
    assert "**Not chosen yet.**" in text
    assert "Not known: the model came without its run." in text
    assert "None is recorded" in text
    run = write_run(tmp_path / "run", model)
    (run / "environment.json").unlink()
    export_model(tmp_path / "run", tmp_path / "out2", formats=["model"])
    text = (tmp_path / "out2" / "README.md").read_text()
    assert "Not recorded by the run: configuration, devices, versions, commit." in text


def test_a_later_export_takes_over_what_the_card_knew(tmp_path: Path, model: VATT) -> None:
    run = write_run(tmp_path / "run", model)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    results = [write_result(tmp_path / "a", model)]
    export_model(run, first, formats=["model"], licence="mit", results=results)
    export_model(first, second, formats=["model"])
    for key in ("license", "vatt"):
        assert head_of(second)[key] == head_of(first)[key]
    results = head_of(first)["model-index"][0]["results"]
    assert head_of(second)["model-index"][0]["results"] == results
    assert "| steps | 810 |" in (second / "README.md").read_text()
    again = write_result(tmp_path / "b", model, 50.0)
    export_model(second, third, formats=["model"], licence="cc-by-4.0", results=[again])
    assert head_of(third)["license"] == "cc-by-4.0"
    values = [
        one.metric_value for one in ModelCard((third / "README.md").read_text()).data.eval_results
    ]
    assert values == [60.1235, 50.0]


def test_a_card_of_another_hand_is_read_or_refused(tmp_path: Path, model: VATT) -> None:
    save_model(model, tmp_path)
    for text, licence in (("# Mine\n", None), ("---\nlicense: mit\nvatt: 3\n---\n# Mine\n", "mit")):
        (tmp_path / "README.md").write_text(text)
        card = read_card(model, tmp_path)
        assert (card.licence, card.facts, card.measured) == (licence, {}, [])
    for damaged in ("---\na: [\n---\n", "---\n- 1\n---\n"):
        (tmp_path / "README.md").write_text(damaged)
        with pytest.raises(UserError, match="the head of .*README.md cannot be read"):
            read_card(model, tmp_path)


def test_results_of_other_weights_are_refused(tmp_path: Path, model: VATT) -> None:
    result = write_result(tmp_path, VATT(TINY))
    with pytest.raises(UserError, match=r"was measured with other weights \(somewhere\)"):
        read_card(model, results=[result])


@pytest.mark.slow
def test_the_code_of_a_card_runs(
    tmp_path: Path, model: VATT, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", model)
    export_model(
        tmp_path / "run", tmp_path / "out", formats=["model", "onnx"], modalities=["audio"]
    )
    assert "onnx" in head_of(tmp_path / "out")["tags"]
    classifier = tmp_path / "classifier"
    save_model(VATT(as_classifier(TINY, "video", 3)), classifier)
    write_model_card(classifier, load_model(classifier), read_card(model), name="x")
    assert head_of(classifier)["pipeline_tag"] == "video-classification"
    two = tmp_path / "two"
    save_model(VATT(replace(TINY, modalities=("video", "audio"))), two)
    write_model_card(two, load_model(two), read_card(model), name="x")
    clip = next(iter(sorted((tiny_corpus / "train").glob("*.mp4")))).read_bytes()
    names: dict[str, dict[str, Any]] = {}
    for folder in (tmp_path / "out", classifier, two):
        (folder / "clip.mp4").write_bytes(clip)
        monkeypatch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL):
            names.setdefault(folder.name, {})
            exec(block, names[folder.name])
    assert names["out"]["cosines"].shape == (1, 1)
    assert names["out"]["outputs"]["vt"].shape == (2, 12)
    assert names["classifier"]["logits"].shape == (1, 3)
    assert names["two"]["cosines"].shape == (1, 1)


def test_the_command_takes_licence_run_and_results(tmp_path: Path, model: VATT) -> None:
    run = write_run(tmp_path / "run", model)
    save_model(model, tmp_path / "model")
    result = write_result(tmp_path / "results", model)
    arguments = ["export", tmp_path / "model", tmp_path / "out", "--formats", "model"]
    arguments += ["--license", "mit", "--run", run, "--results", result]
    assert main([str(argument) for argument in arguments]) == 0
    head = head_of(tmp_path / "out")
    assert (head["license"], head["vatt"]["steps"]) == ("mit", 810)
    assert len(head["model-index"][0]["results"]) == 2
