"""Progress of a training run in a log, and what its end proposes."""

import pytest
from lightning.pytorch import Trainer

from vatt.config.presets import preset
from vatt.network.contrastive_loss import LossConfig
from vatt.runs import progress
from vatt.runs.progress import TrainingProgress, more_training
from vatt.training.optim import OptimizerConfig, ScheduleConfig
from vatt.training.pretrain import PretrainModule


@pytest.fixture
def trainer() -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", max_steps=200, **quiet)


def set_step(trainer: Trainer, step: int) -> None:
    manual = trainer.fit_loop.epoch_loop.automatic_optimization
    manual.optim_progress.optimizer.step.total.completed = step


def test_lines_of_a_log_say_how_long_a_run_has_taken_and_will_take(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    schedule = ScheduleConfig(max_steps=200, warmup_steps=1)
    module = PretrainModule(preset("tiny"), LossConfig(), OptimizerConfig(), schedule)
    module._trainer = trainer
    set_step(trainer, 100)  # resumed
    lines = TrainingProgress()
    lines.on_train_start(trainer, module)
    for seconds, step in ((20.0, 104), (50.0, 110), (4000.0, 150)):
        now[0], _ = 1000.0 + seconds, set_step(trainer, step)
        lines.on_train_batch_end(trainer, module)
    module.time_share = 0.9  # by time it is further than by steps
    lines.on_train_end(trainer, module)
    shown = [line.rstrip(", ") for line in capsys.readouterr().err.splitlines()]
    assert shown[1:] == [
        "step 110/200 (55%), 00:50 elapsed, 07:30 left",
        "step 150/200 (75%), 1:06:40 elapsed, 1:06:40 left",
        "step 150 (90% of the time), 1:06:40 elapsed, 16:40 left",
    ]


def test_more_of_a_run_is_more_of_what_ended_it(trainer: Trainer) -> None:
    set_step(trainer, 20)
    assert more_training(trainer, 15.0) == "--run.time_budget_seconds 30"
    assert more_training(trainer, None) == "--trainer.max_steps 400"
    set_step(trainer, 200)
    both = "--trainer.max_steps 400 --run.time_budget_seconds 30"
    assert more_training(trainer, 15.0) == both
