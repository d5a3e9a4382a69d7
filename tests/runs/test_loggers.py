"""Where metrics go: CSV, Weights & Biases, TensorBoard; and what a run records of itself."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_runs import fit_arguments, read_rows
from wandb_files import end_wandb, pieces, read_config, read_history, read_records

from vatt.cli import main
from vatt.config.shipped import shipped_configs
from vatt.errors import UserError
from vatt.runs.loggers import RunWandb, check_packages, wandb_mode
from vatt.runs.metrics_csv import MetricsCsv
from vatt.runs.progress import DIRECTIONS
from vatt.runs.training_cli import RunConfig
from vatt.system.environment import describe_environment, git_commit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_wandb_run_outlives_its_test() -> Iterator[None]:
    yield
    end_wandb()


def test_csv_goes_on_after_a_resume_and_takes_new_columns(tmp_path: Path) -> None:
    first = MetricsCsv(tmp_path)
    for step in range(4):
        first.log_metrics({"a": step, "epoch": 0}, step)
    first.log_metrics({"b": 0.5}, 3)
    again = MetricsCsv(tmp_path)
    again.log_metrics({"a": 20}, 2)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [
        ("0", "0.0", ""),
        ("1", "1.0", ""),
        ("2", "20.0", ""),
    ]


@pytest.mark.parametrize(
    ("environment", "netrc", "asked", "expected"),
    [
        ({}, "", "auto", "offline"),
        ({"WANDB_API_KEY": "x"}, "", "auto", "online"),
        ({}, "machine api.wandb.ai login user password x", "auto", "online"),
        ({}, "machine api.github.com login user password x", "auto", "offline"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "", "auto", "offline"),
        ({"WANDB_MODE": "disabled"}, "", "auto", "disabled"),
        ({"WANDB_API_KEY": "x"}, "", "disabled", "disabled"),
        ({}, "", "online", "online"),
    ],
)
def test_wandb_is_online_with_a_key_only(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    netrc: str,
    asked: Any,
    expected: str,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode(asked) == expected


def test_wandb_without_a_key_runs_offline_in_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    run = tmp_path / "run"
    logger = RunWandb(run, "vatt", "online")  # asked for, but there is no key
    assert not run.exists()
    logger.log_config({"seed": 1})
    logger.log_metrics({"train/loss": 1.0}, 0)
    assert logger.experiment.offline
    assert logger.experiment.config["seed"] == 1
    assert logger.files is not None
    assert logger.files.parent == run / "wandb"
    end_wandb()
    assert RunWandb(run, "vatt", "offline").version == (run / "wandb_run_id").read_text().strip()
    assert "no key" in capsys.readouterr().err


@pytest.mark.slow  # waits until the server counts as unreachable
def test_wandb_goes_on_offline_where_the_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("vatt.runs.loggers.CONNECT_SECONDS", 3)
    logger = RunWandb(tmp_path, "vatt", wandb_mode("auto"))
    logger.log_metrics({"train/loss": 1.0}, 0)
    assert logger.experiment.offline
    assert "W&B cannot be reached" in capsys.readouterr().err
    end_wandb()


@pytest.mark.slow
def test_resumed_run_goes_on_with_the_same_wandb_run_and_repeats_no_step(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = fit_arguments(tiny_shards, run, "--run.wandb=offline")
    crash = ["--trainer.callbacks+=training_runs.FillDisk", "--trainer.callbacks.step=8"]
    assert main([*command, *crash]) == 1  # steps 6 and 7 are logged, the checkpoint is of step 6
    end_wandb()
    assert main([*command, "--ckpt_path=last"]) == 0
    end_wandb()
    first, second = pieces(run)
    name = (run / "wandb_run_id").read_text().strip()
    assert first.name.endswith(f"-{name}")
    assert second.name.endswith(f"-{name}")
    steps = [
        [row["trainer/global_step"] for row in read_history(piece) if "train/loss" in row]
        for piece in (first, second)
    ]
    assert steps == [[*range(8)], [8, 9]]
    sent = {
        (row["trainer/global_step"], name): value
        for piece in (first, second)
        for row in read_history(piece)
        for name, value in row.items()
        if name.startswith(("train/", "val/"))
    }
    kept = {
        (int(row["step"]), name): float(value)
        for row in read_rows(run)
        for name, value in row.items()
        if name.startswith(("train/", "val/")) and value
    }
    assert sent == pytest.approx(kept)  # nothing is missing


def test_wandb_sends_of_a_repeated_step_only_what_it_lacks(tmp_path: Path) -> None:
    for part in range(2):
        csv_log, run = MetricsCsv(tmp_path), RunWandb(tmp_path, "vatt", "offline")
        for logger in (csv_log, run):
            logger.log_metrics({"train/loss": 1.0, "epoch": 0}, 0)
        if part == 1:  # the first process died before its validation
            run.log_metrics({"val/R@1": 2.0, "epoch": 0}, 0)
        end_wandb()
    rows = read_history(pieces(tmp_path)[1])
    assert [{*row} & {"train/loss", "val/R@1"} for row in rows] == [{"val/R@1"}]


def test_run_of_a_sweep_has_the_id_that_the_agent_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "sweep123")
    logger = RunWandb(tmp_path, "vatt", "offline")
    assert logger.experiment.id == "sweep123"
    assert (tmp_path / "wandb_run_id").read_text() == "sweep123\n"


@pytest.mark.slow
def test_checkpoints_are_artifacts_only_when_asked(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    for name, asked in (("plain", "false"), ("sent", "true")):
        options = ["--run.wandb=offline", f"--run.wandb_checkpoints={asked}"]
        steps = ["--trainer.max_steps=4", "--trainer.limit_val_batches=0"]
        assert main(fit_arguments(tiny_shards, tmp_path / name, *options, *steps)) == 0
        end_wandb()
    artifacts = {
        name: [
            r.request.log_artifact.artifact if r.HasField("request") else r.artifact
            for r in read_records(pieces(tmp_path / name)[0])
            if r.HasField("artifact")
            or (r.HasField("request") and r.request.HasField("log_artifact"))
        ]
        for name in ("plain", "sent")
    }
    assert artifacts["plain"] == []
    assert [json.loads(a.metadata) for a in artifacts["sent"]] == [{"step": 3}, {"step": 4}]
    name = (tmp_path / "sent" / "wandb_run_id").read_text().strip()
    assert {a.name for a in artifacts["sent"]} == {f"checkpoint-{name}"}


def test_checkpoints_cannot_be_sent_to_a_disabled_wandb(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = fit_arguments(tiny_shards, tmp_path / "run", "--run.wandb_checkpoints=true")
    assert main(command) == 1
    assert "run.wandb_checkpoints is true, but W&B is disabled" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tensorboard_names_the_extra_where_the_package_is_missing(
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    command = fit_arguments(tiny_shards, tmp_path / "run", "--run.tensorboard=true")
    assert main(command) == 1
    message = capsys.readouterr().err
    assert 'run.tensorboard needs the package tensorboard: pip install "vatt[tracking]"' in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("package", "settings", "message"),
    [
        ("tensorboard", {"tensorboard": True}, "run.tensorboard needs the package tensorboard"),
        ("PIL", {"media_every_n_validations": 1, "wandb": "offline"}, "needs the package pillow"),
        ("wandb", {"wandb": "online"}, "run.wandb online needs the package wandb"),
        ("wandb", {"wandb_checkpoints": True}, "wandb_checkpoints is true, but W&B is disabled"),
    ],
)
def test_settings_are_refused_while_their_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, package: str, settings: dict[str, Any], message: str
) -> None:
    run = {**vars(RunConfig()), "wandb": "auto", **settings}
    check_packages(run)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message):
        check_packages(run)
    unset = {"wandb": "disabled", "media_every_n_validations": 1}
    check_packages({**vars(RunConfig()), **unset})  # media without W&B need neither


@pytest.mark.slow
def test_tensorboard_writes_into_the_run_directory(tiny_shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    assert main(fit_arguments(tiny_shards, run, "--run.tensorboard=true")) == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [*range(10)]


def test_configuration_and_environment_are_recorded_in_files_and_wandb(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--run.wandb=offline", "--trainer.max_steps=3", "--trainer.limit_val_batches=0"]
    command = fit_arguments(tiny_shards, run, *options)
    assert main(command) == 0
    end_wandb()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == version("torch")
    assert environment["command"].startswith("vatt fit --config=")
    assert environment["command"].endswith("--trainer.limit_val_batches=0")
    assert environment["devices"]
    config = read_config(pieces(run)[0])
    assert config["environment"] == environment
    assert config["seed_everything"] == 0
    assert config["data"]["init_args"]["batch_size"] == 8
    assert main([*command, "--trainer.max_steps=4", "--ckpt_path=last"]) == 0
    again = json.loads((run / "environment.resume-1.json").read_text())
    assert again["command"].endswith("--ckpt_path=last")


def test_commit_is_that_of_a_checkout_and_says_whether_files_differ(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text("1")
    assert git_commit(tmp_path) is None  # no commit yet
    git("add", "a.py")
    git("commit", "-qm", "one")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "a.py").write_text("2")
    assert git_commit(tmp_path) == f"{git('rev-parse', 'HEAD')}-dirty"
    installed = tmp_path / ".venv"
    installed.mkdir()
    assert git_commit(installed) is None  # the checkout around it says nothing of it


def test_environment_is_plain_and_names_the_devices() -> None:
    environment = describe_environment(["fit", "--config", "my demo.yaml"], world_size=2)
    assert environment["command"] == "vatt fit --config 'my demo.yaml'"
    assert environment["world_size"] == 2
    assert environment["lightning"]
    assert json.loads(json.dumps(environment)) == environment


def test_sweep_is_one_of_wandb_and_its_command_is_that_of_the_readme() -> None:
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text())
    _validate_config_and_fill_distribution(sweep)
    drawn = {
        name: {"value": one["values"][-1] if "values" in one else one["max"]}
        for name, one in sweep["parameters"].items()
    }
    arguments = create_sweep_command_args({"args": drawn})["args"]
    assert sweep["command"][0] == "${env}"
    assert sweep["command"][-1] == "${args}"
    fixed = sweep["command"][1:-1]
    assert " ".join(fixed) in " ".join(
        (ROOT / "docs" / "training.md").read_text().replace("\\\n", " ").split()
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*fixed[1:], *arguments, "--print_config"]) == 0  # refuses what is no option
    config = yaml.safe_load(printed.getvalue())
    for name, one in drawn.items():
        value = config
        for part in name.split("."):
            value = value[part]
        assert value == one["value"], name
    assert sweep["metric"]["name"] in {f"val/{direction}/R@1" for direction in DIRECTIONS}
    assert "sweep" not in shipped_configs()
