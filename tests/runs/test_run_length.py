"""Length of a run: steps that follow the files, and what follows the steps."""

from pathlib import Path

import pytest
import torch

from vatt.config.shipped import given_values, with_config_paths
from vatt.runs.classifier_defaults import LabelledSet
from vatt.runs.run_length import run_length

WARMUP = "model.init_args.schedule.warmup_steps"
BATCH = "data.init_args.batch_size"
VALIDATION, CHECKPOINT = "trainer.val_check_interval", "run.checkpoint_every_n_steps"


def length_of(num_files: int | None, *args: str) -> tuple[dict[str, int], str]:
    arguments = with_config_paths(["fit", *args])
    files = None if num_files is None else LabelledSet(num_files, has_pictures=True)
    return run_length(arguments, given_values(arguments), files)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_few_files_take_few_steps_in_batches_of_all_files() -> None:
    length, line = length_of(12, "--config=finetune_own")
    assert length == {
        BATCH: 12,
        "trainer.max_steps": 120,
        WARMUP: 12,
        VALIDATION: 6,
        CHECKPOINT: 12,
    }
    assert line.startswith("12 files: 120 steps of 12, 120 passes over the files; --steps")


def test_many_files_take_the_steps_of_the_recipe() -> None:
    length, line = length_of(2_700, "--config", "finetune_own")
    assert (length[BATCH], length["trainer.max_steps"]) == (64, 2000)
    assert {WARMUP, VALIDATION, CHECKPOINT}.isdisjoint(length)
    assert line == "2,700 files: 2,000 steps of 64"


def test_steps_of_the_user_count_and_intervals_follow_them() -> None:
    length, line = length_of(12, "--config=finetune_own", "--trainer.max_steps=500")
    assert (length["trainer.max_steps"], length[WARMUP], length[VALIDATION]) == (500, 50, 25)
    assert line == "12 files: 500 steps of 12"


def test_time_of_the_user_counts_in_place_of_passes() -> None:
    length, _ = length_of(12, "--config=finetune_own", "--run.time_budget_seconds=60")
    assert length["trainer.max_steps"] == 2000


def test_what_a_configuration_of_the_user_sets_does_not_change(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "trainer: {max_steps: 50, val_check_interval: 40}\ndata: {init_args: {batch_size: 4}}\n"
    )
    own = f"--config={tmp_path / 'own.yaml'}"
    length, line = length_of(12, "--config=finetune_own", own, f"--{WARMUP}=7")
    assert length == {"trainer.max_steps": 50, CHECKPOINT: 5}
    assert line == "12 files: 50 steps of 4"


def test_several_gpus_share_the_batch_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    length, _ = length_of(12, "--config=finetune_own")
    assert BATCH not in length
    assert length["trainer.max_steps"] == 23  # of 64: each file 120 times and more


def test_a_warm_up_as_long_as_the_run_is_shortened() -> None:
    length, line = length_of(None, "--config=demo", "--trainer.max_steps=60")
    assert length == {WARMUP: 3}
    assert line == "60 steps: a warm-up of 3 in place of 100"
    assert length_of(None, "--config=demo", "--trainer.max_steps=500") == ({}, "")
    set_by_user = ["--trainer.max_steps=60", f"--{WARMUP}=80"]
    assert length_of(None, "--config=demo", *set_by_user) == ({}, "")
    length, _ = length_of(None, "--config=finetune_kinetics", "--trainer.max_steps=60")
    assert length == {WARMUP: 1}
