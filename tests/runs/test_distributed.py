"""Training in several processes: the same run for any number of them, killed and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_processes import run_vatt
from training_runs import (
    EXACT,
    STEPS,
    fit_arguments,
    read_keys,
    read_losses,
    read_rows,
    signal_options,
)

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # on two cores two ranks wait for each other

RECORD = ["--trainer.callbacks+=training_runs.RecordKeys"]
KEEP = ["--run.keep_checkpoints.best_by=val/text_to_video/MedR"]
KEEP += ["--run.keep_checkpoints.every_n_steps=4"]


def fit(shards: Path, run: Path, world_size: int, *more: str) -> list[int | None]:
    arguments = fit_arguments(shards, run, *RECORD, *KEEP, *more)
    return run_vatt(arguments, world_size, run.with_suffix(".out"))


def said(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(run.with_suffix(".out").glob("*.txt")))


@pytest.fixture(scope="module")
def whole_runs(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nobody stops, by their number of ranks."""
    runs = {}
    for world_size in (1, 2):
        runs[world_size] = tmp_path_factory.mktemp("whole") / "run"
        codes = fit(tiny_shards, runs[world_size], world_size)
        assert codes == [0] * world_size, said(runs[world_size])
    return runs


def test_ranks_share_the_clips_of_one_process(whole_runs: dict[int, Path]) -> None:
    keys = read_keys(whole_runs[1])
    assert sorted(keys) == list(range(STEPS))
    assert read_keys(whole_runs[2]) == keys


def test_losses_do_not_depend_on_the_number_of_ranks(tiny_shards: Path, tmp_path: Path) -> None:
    losses = []
    for world_size in (1, 2):
        run = tmp_path / f"run-{world_size}"
        assert fit(tiny_shards, run, world_size, *EXACT) == [0] * world_size, said(run)
        losses.append([float(loss) for loss in read_losses(run).values()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)


@pytest.mark.parametrize(
    ("before", "after", "workers"),
    [
        (2, 2, 0),
        (2, 1, 0),
        (1, 2, 0),
        (1, 1, 0),
        (1, 1, 2),
        (2, 2, 2),
    ],
)
def test_killed_run_goes_on_with_any_number_of_ranks(
    tiny_shards: Path,
    whole_runs: dict[int, Path],
    tmp_path: Path,
    before: int,
    after: int,
    workers: int,
) -> None:
    run, step = tmp_path / "run", random.Random(f"{before}{after}{workers}").randrange(4, STEPS)
    options = f"--data.init_args.num_workers={workers}"
    kill = signal_options("step", signal.SIGKILL, step=step)
    assert fit(tiny_shards, run, before, options, *kill) == [-signal.SIGKILL] * before, said(run)
    assert fit(tiny_shards, run, after, options, "--ckpt_path=last") == [0] * after, said(run)
    assert read_keys(run) == read_keys(whole_runs[1])
    names = {"last", "previous", "best", "step-4", "step-8"}
    assert {path.stem for path in (run / "checkpoints").iterdir()} == names
    if before == after:
        assert read_losses(run) == read_losses(whole_runs[before])


def test_run_ends_with_an_error_where_one_of_two_ranks_is_killed(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run, began = tmp_path / "run", time.monotonic()
    kill = signal_options("step", signal.SIGKILL, step=5, rank=1)
    code, killed = fit(tiny_shards, run, 2, *kill)
    assert killed == -signal.SIGKILL
    assert code is not None, f"still there after {time.monotonic() - began:.0f} s"
    assert code > 0
    assert "another process of the run ended" in said(run)
    assert f"go on with: vatt fit --config {run}/config.yaml --ckpt_path last" in said(run)
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_torchrun_starts_a_run_again_that_lost_a_rank(
    tiny_shards: Path, whole_runs: dict[int, Path], tmp_path: Path
) -> None:
    run, root = tmp_path / "run", Path(__file__).resolve().parents[2]
    kill = ["--trainer.callbacks+=training_runs.KillOnce", "--trainer.callbacks.step=5"]
    arguments = fit_arguments(tiny_shards, run, *kill, "--ckpt_path=last", "--trainer.devices=2")
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "-m", "vatt.cli"]
    path = os.pathsep.join([str(root / "tests/support"), str(root)])
    # torchrun keeps its store over restarts, and with it the addresses of processes that ended
    fresh_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = {**os.environ, "PYTHONPATH": path, **fresh_store}
    command = [sys.executable, "-m", *torchrun, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (run / "killed").exists()
    assert read_losses(run) == read_losses(whole_runs[2])


def test_loss_that_is_not_finite_ends_all_ranks_at_the_same_step(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert fit(tiny_shards, run, 2, "--trainer.callbacks+=training_runs.BreakOneRank") == [1, 1]
    for rank in range(2):
        text = (run.with_suffix(".out") / f"{rank}.txt").read_text()
        assert "the loss is not finite at step 2 (video-audio nan, video-text nan" in text


# without Adam, which makes much of how float32 rounds the sums
SHARDED = "--trainer.strategy={class_path: vatt.training.sharding.ShardedStrategy}"
SGD = ["--model.init_args.optimizer={name: sgd, learning_rate: 0.02, clip_backbone: 1.0}"]
SGD += ["--trainer.gradient_clip_val=null", *EXACT[:2]]
LEARNED = ["--model.init_args.loss.learn_temperature=true"]


def test_sharded_weights_train_as_whole_ones_and_change_places_with_them(
    tiny_shards: Path, tmp_path: Path
) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    options, last = [*SGD, *LEARNED], "--ckpt_path=last"
    assert fit(tiny_shards, whole, 2, *options) == [0, 0], said(whole)
    for step, start in ((3, []), (6, [last])):
        stop = signal_options("step", signal.SIGTERM, step=step)
        codes = fit(tiny_shards, sharded, 2, *options, SHARDED, *stop, *start)
        assert codes == [128 + signal.SIGTERM] * 2, said(sharded)
    assert fit(tiny_shards, sharded, 1, *options, last) == [0], said(sharded)
    losses = [[float(loss) for loss in read_losses(run).values()] for run in (sharded, whole)]
    assert len(losses[0]) == STEPS
    # clipping by norms of shards rounds otherwise; batch statistics of a few clips enlarge that
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    narrow = "--model.init_args.model.encoder.d_ff=32"
    assert fit(tiny_shards, sharded, 2, *options, SHARDED, last, narrow) == [1, 1]
    assert "encoder.d_ff" in said(sharded).splitlines()[-1]


def test_step_with_broken_gradients_is_left_out_on_all_ranks_of_sharded_weights(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    breaks = ["--trainer.callbacks+=training_runs.BreakGradients", "--trainer.callbacks.first=4"]
    breaks += ["--trainer.callbacks.count=1"]
    assert fit(tiny_shards, run, 2, SHARDED, *breaks) == [0, 0], said(run)
    skipped = [float(row["train/skipped_steps"]) for row in read_rows(run)]
    assert skipped == [float(step == 4) for step in range(STEPS)]


def exchanges(shards: Path, run: Path, *more: str) -> dict[str, int]:
    count = "--trainer.callbacks+=training_runs.CountExchanges"
    options = [count, "--run.checkpoint_every_n_steps=9", "--trainer.max_steps=6", *more]
    arguments = fit_arguments(shards, run, "--trainer.limit_val_batches=0", *options)
    assert run_vatt(arguments, 2, run.with_suffix(".out")) == [0, 0], said(run)
    return json.loads((run / "exchanges.json").read_text())


def test_step_asks_no_rank_on_its_device_whether_to_stop_nor_for_batch_statistics(
    tiny_shards: Path, tmp_path: Path
) -> None:
    assert "broadcast_" not in exchanges(tiny_shards, tmp_path / "run")


def test_step_gathers_sharded_weights_and_exchanges_gradients_once(
    tiny_shards: Path, tmp_path: Path
) -> None:
    counts = exchanges(tiny_shards, tmp_path / "run", SHARDED, *LEARNED)
    assert (counts["_allgather_base_"], counts["_reduce_scatter_base_"]) == (1, 1)


def test_what_cannot_be_sharded_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [SHARDED, "--model.init_args.micro_batch_size=2"]
    assert fit(tiny_shards, run, 2, *options) == [1, 1]
    assert "micro_batch_size and init_optimizer need whole weights" in said(run)
    assert "Traceback" not in said(run)
