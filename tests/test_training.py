"""Training runs by the real command line, on the tiny corpus."""

import csv
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from vatt.batch import Batch
from vatt.checkpoint import load_model
from vatt.cli import main
from vatt.config import preset
from vatt.errors import UserError
from vatt.loggers import MetricsCsv, RunWandb, wandb_mode
from vatt.losses import LossConfig
from vatt.optim import OptimizerConfig, ScheduleConfig, learning_rate_factor
from vatt.pretrain import NonFiniteLossError, PretrainModule
from vatt.run_checkpoint import AtomicCheckpointIO

STEPS = 10
HERE = Path(__file__).resolve().parent


class SendSignal(Callback):
    """Sends this process a signal at a step, before it or in the validation after it."""

    def __init__(self, step: int, number: int, in_validation: bool = False) -> None:
        self.step, self.number, self.in_validation = step, number, in_validation

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.in_validation:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.in_validation:
            os.kill(os.getpid(), self.number)


def fit_arguments(shards: Path, run: Path, *more: str) -> list[str]:
    return [
        "fit",
        "--config=tiny",
        f"--data.init_args.train=[{shards / 'train'}]",
        f"--data.init_args.validation={shards / 'validation'}",
        f"--run.dir={run}",
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=4",
        "--trainer.limit_val_batches=2",
        "--run.checkpoint_every_n_steps=3",
        *more,
    ]


def signal_options(step: int, number: int, in_validation: bool = False) -> list[str]:
    return [
        "--trainer.callbacks+=test_training.SendSignal",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.number={int(number)}",
        f"--trainer.callbacks.in_validation={in_validation}",
    ]


def read_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_losses(run: Path) -> dict[int, str]:
    """Digits of the loss by step; a step that stands twice fails."""
    rows = [row for row in read_rows(run) if row["train/loss"]]
    losses = {int(row["step"]): row["train/loss"] for row in rows}
    assert len(losses) == len(rows)
    return losses


@pytest.fixture(scope="module")
def finished_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("training") / "run"
    assert main(fit_arguments(tiny_shards, run)) == 0
    return run


def test_run_directory_holds_everything_of_the_run(finished_run: Path) -> None:
    names = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*")}
    assert names == {"config.yaml", "metrics.csv", "checkpoints", "checkpoints/last.ckpt"}


def test_metrics_have_their_names_and_a_row_for_each_step(finished_run: Path) -> None:
    rows = read_rows(finished_run)
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert {
        *("train/loss", "train/loss_video_audio", "train/loss_video_text", "train/grad_norm"),
        *("train/accuracy_video_audio", "train/accuracy_video_text", "train/learning_rate"),
        *("perf/clips_per_second", "perf/data_wait_share", "perf/step_seconds"),
        *("data/decode_failures", "data/text_coverage", "data/audio_coverage"),
        *(f"val/text_to_video/{name}" for name in ("R@1", "R@5", "R@10", "MedR")),
        *(f"val/{name}/R@1" for name in ("video_to_text", "audio_to_video", "video_to_audio")),
    } <= rows[0].keys()
    assert [int(row["step"]) for row in rows if row["val/text_to_video/R@1"]] == [3, 7, 9]
    assert all(0 <= float(row["perf/data_wait_share"]) <= 1 for row in rows)


def test_learning_rate_follows_the_schedule_of_the_config(finished_run: Path) -> None:
    schedule = ScheduleConfig(
        kind="constant_then_linear", max_steps=STEPS, warmup_steps=2, final_factor=0.0
    )
    expected = [1e-3 * learning_rate_factor(schedule, step / STEPS) for step in range(STEPS)]
    logged = [float(row["train/learning_rate"]) for row in read_rows(finished_run)]
    assert logged == pytest.approx(expected, rel=1e-6)


def test_checkpoint_describes_its_model_and_holds_no_objects(finished_run: Path) -> None:
    path = finished_run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == STEPS
    assert "hyper_parameters" not in checkpoint
    assert load_model(path).config.to_dict() == checkpoint["vatt_config"]


def test_killed_run_goes_on_with_identical_losses(
    tiny_shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = fit_arguments(tiny_shards, run, *signal_options(5, signal.SIGKILL))
    code = f"import sys; from vatt.cli import main; sys.exit(main({arguments!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(read_losses(run)) == [
        0,
        1,
        2,
        3,
        4,
    ]  # written so far; the checkpoint is of step 3
    assert main(fit_arguments(tiny_shards, run, "--ckpt_path=last")) == 0
    assert read_losses(run) == read_losses(finished_run)
    assert (run / "config.resume-1.yaml").exists()


@pytest.mark.parametrize(
    ("number", "step", "in_validation"),
    [(signal.SIGINT, 3, False), (signal.SIGTERM, 4, True)],
    ids=["ctrl-c in a step", "sigterm in validation"],
)
def test_signal_leaves_a_checkpoint_that_resumes_exactly(
    tiny_shards: Path,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    step: int,
    in_validation: bool,
) -> None:
    run = tmp_path / "run"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    code = main(fit_arguments(tiny_shards, run, *signal_options(step, number, in_validation)))
    assert code == 128 + number
    assert f"stopped by {number.name} after step 4" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    # the saved configuration is all that is needed to go on
    without_signal = ["--trainer.callbacks=null"]
    resume = ["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last", *without_signal]
    assert main(resume) == 0
    assert read_losses(run) == read_losses(finished_run)


def test_time_budget_ends_the_run_with_its_schedule_carried_out(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--run.time_budget_seconds=1.5", "--trainer.max_steps=1000000"]
    assert main(fit_arguments(tiny_shards, run, *options)) == 0
    rows = [row for row in read_rows(run) if row["train/loss"]]
    rates = [float(row["train/learning_rate"]) for row in rows]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 0.5e-3  # it fell, by time
    spent = sum(float(row["perf/step_seconds"]) for row in rows)
    assert 1.5 <= spent < 1.5 + 2 * max(float(row["perf/step_seconds"]) for row in rows)
    assert rows[-1]["val/text_to_video/R@1"]  # validated at the end
    before = len(rows)
    assert main(fit_arguments(tiny_shards, run, *options, "--ckpt_path=last")) == 0
    assert len(read_losses(run)) <= before + 1  # the time that was spent counts after a resume


def test_resumed_run_that_has_nothing_left_says_so(
    tiny_shards: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments(tiny_shards, finished_run, "--ckpt_path=last")) == 0
    assert "is trained: step 10" in capsys.readouterr().out
    (finished_run / "config.resume-1.yaml").unlink()


def test_validate_repeats_the_metrics_of_the_last_validation(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished_run / "config.yaml"
    assert main(["validate", f"--config={config}", "--ckpt_path=last"]) == 0
    printed = capsys.readouterr().out.splitlines()
    last = read_rows(finished_run)[-1]
    for direction in ("text_to_video", "video_to_audio"):
        title = direction.replace("_to_", " → ")
        line = next(line for line in printed if line.strip().startswith(title))
        assert f"MedR {float(last[f'val/{direction}/MedR']):5.1f}" in line


def test_predict_writes_the_embeddings_of_the_set(finished_run: Path) -> None:
    from safetensors import safe_open

    config = finished_run / "config.yaml"
    limit = "--trainer.limit_predict_batches=2"
    assert main(["predict", f"--config={config}", "--ckpt_path=last", limit]) == 0
    out = finished_run / "checkpoints" / "embeddings.safetensors"
    with safe_open(out, "pt") as file:
        assert file.get_tensor("video_va").shape == (16, 24)
        assert len(file.metadata()["keys"].split(",")) == 16
    out.unlink()


def test_fresh_run_never_overwrites_another(
    tiny_shards: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "metrics.csv").read_text()
    assert main(fit_arguments(tiny_shards, finished_run)) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (finished_run / "metrics.csv").read_text() == before


def test_checkpoint_of_another_geometry_is_refused_by_name(
    tiny_shards: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = finished_run / "checkpoints" / "last.ckpt"
    more = [f"--ckpt_path={checkpoint}", "--model.init_args.model.d_post=48"]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *more)) == 1
    assert "d_post is 32 there and 48 here" in capsys.readouterr().err


def test_loss_that_is_not_finite_stops_the_run_and_names_step_and_clips(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = [
        "--model.init_args.optimizer.name=sgd",
        "--model.init_args.optimizer.learning_rate=1e38",
    ]
    more += ["--trainer.gradient_clip_val=null", "--run.checkpoint_every_n_steps=1"]
    assert main(fit_arguments(tiny_shards, run, *more)) == 1
    message = capsys.readouterr().err
    assert "the loss is not finite at step 2" in message
    assert "video-audio nan" in message
    assert "000" in message.split("Clips of the batch: ")[1]  # keys of the corpus


def test_accumulated_steps_count_optimizer_steps(tiny_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=4"]
    more += ["--trainer.limit_val_batches=0"]
    assert main(fit_arguments(tiny_shards, run, *more)) == 0
    assert sorted(read_losses(run)) == [0, 1, 2, 3]


def test_failed_write_leaves_the_previous_checkpoint_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    large = {"step": torch.tensor(2), "weights": torch.zeros(1_000_000)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as if the disk were full
        with pytest.raises(OSError, match="checkpoint"):
            AtomicCheckpointIO().save_checkpoint(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(path, weights_only=True)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_module_is_usable_without_the_command_line() -> None:
    module = tiny_module()
    batch = Batch(
        video=torch.randint(0, 255, (4, 4, 32, 32, 3), dtype=torch.uint8),
        audio=torch.rand(4, 6_400),
        text=torch.randint(1, 99, (4, 2, 5)),
    )
    output = module.loss(module.network(batch), batch)
    assert output.total.isfinite()
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    checkpoint["vatt_config"]["video"]["num_frames"] = 8
    with pytest.raises(UserError, match="video.num_frames is 8 there and 4 here"):
        module.on_load_checkpoint(checkpoint)


def test_non_finite_loss_is_an_error_for_users() -> None:
    assert issubclass(NonFiniteLossError, UserError)


def tiny_module() -> PretrainModule:
    schedule = ScheduleConfig(max_steps=10, warmup_steps=1)
    return PretrainModule(preset("tiny"), LossConfig(), OptimizerConfig(), schedule)


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
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    run = tmp_path / "run"
    logger = RunWandb(run, "vatt", "online")  # asked for, but there is no key
    logger.log_config({"seed": 1})
    logger.log_metrics({"train/loss": 1.0}, 0)
    assert logger.experiment.offline
    assert logger.experiment.config["seed"] == 1
    assert logger.files is not None
    assert logger.files.parent == run / "wandb"
    wandb.finish()
    assert RunWandb(run, "vatt", "offline").version == (run / "wandb_run_id").read_text().strip()
    assert "no key" in capsys.readouterr().err


@pytest.mark.slow  # waits until the server counts as unreachable
def test_wandb_goes_on_offline_where_the_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("vatt.loggers.CONNECT_SECONDS", 3)
    logger = RunWandb(tmp_path, "vatt", wandb_mode("auto"))
    logger.log_metrics({"train/loss": 1.0}, 0)
    assert logger.experiment.offline
    assert "W&B cannot be reached" in capsys.readouterr().err
    wandb.finish()
