"""Stage `run`: `vatt fit` on files, with reader processes, stopped by a signal and resumed."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vatt.demo.corpus import write_corpus
from vatt.gpu_check.figures import MIB, Row
from vatt.gpu_check.place import Place
from vatt.models.training_facts import METRICS
from vatt.packing.build import build_shards

STEPS, QUICK_STEPS, STOP_AFTER = 60, 24, 8
MOST = 1e-3  # sums of a GPU differ from run to run, which the steps enlarge
WAIT_SECONDS = 60.0  # for the end of a process
SHARED_MEMORY = Path("/dev/shm")


def measure_run(place: Place) -> Iterator[Row]:
    """A run that is not interrupted, and one that is."""
    steps = QUICK_STEPS if place.quick else STEPS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = _make_shards(folder, 24 if place.quick else 200)
        whole, stopped = folder / "whole", folder / "stopped"
        began, before = time.monotonic(), _shared_bytes()
        peak = [before]
        process = _start(_arguments(place, shards, whole))
        code = _wait(process, lambda: peak.append(max(peak[-1], _shared_bytes())))
        yield Row("whole run", "exit code", code, at_most=0)
        yield Row("whole run", "time, with imports", time.monotonic() - began, "s")
        yield Row("whole run", "shared memory", (peak[-1] - before) / MIB, "MiB")
        waits = _column(whole, "perf/data_wait_share")
        if waits:
            yield Row("whole run", "share of time that waits for data", waits[-1])
        process = _start(_arguments(place, shards, stopped))
        _wait(process, lambda: len(_column(stopped, "train/loss")) >= STOP_AFTER)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = _wait(process)
        yield Row("stopped run", "exit code, off 143", abs(code - 128 - signal.SIGTERM), at_most=0)
        left = _processes_left(process.pid)
        yield Row("stopped run", "processes that are left", left, at_most=0)
        resumed = ["fit", f"--config={stopped / 'config.yaml'}", "--ckpt_path=last"]
        code = _wait(_start(resumed))
        yield Row("resumed run", "exit code", code, at_most=0)
        losses, expected = (_column(run, "train/loss") for run in (stopped, whole))
        yield Row("resumed run", "steps with a loss", len(losses), at_least=steps, at_most=steps)
        apart = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=False)]
        most = max(apart[: STOP_AFTER + 4], default=float("inf"))
        yield Row("resumed run", "loss, off the whole run, first steps", most, at_most=MOST)
        yield Row("resumed run", "loss, off the whole run, all steps", max(apart, default=0.0))


def _make_shards(folder: Path, num_train: int) -> Path:
    write_corpus(
        folder / "corpus",
        num_train=num_train,
        num_validation_renderings=1,
        show_progress=False,
    )
    for split in ("train", "validation"):
        build_shards(
            folder / "corpus" / split,
            folder / "shards" / split,
            samples_per_shard=50,
            show_progress=False,
        )
    shutil.rmtree(folder / "corpus")
    return folder / "shards"


def _arguments(place: Place, shards: Path, run: Path) -> list[str]:
    on_gpu = place.device.type == "cuda"
    batch, part, workers, steps = (8, 4, 1, QUICK_STEPS) if place.quick else (64, 16, 8, STEPS)
    return [
        "fit",
        f"--config={'tiny' if place.quick else 'demo'}",
        f"--data.init_args.train=[{shards / 'train'}]",
        f"--data.init_args.validation={shards / 'validation'}",
        f"--data.init_args.batch_size={batch}",
        "--data.init_args.cache_gib=0",
        f"--data.init_args.num_workers={workers}",
        f"--model.init_args.micro_batch_size={part}",
        f"--run.dir={run}",
        "--run.wandb=disabled",
        "--run.time_budget_seconds=null",
        "--run.checkpoint_every_n_steps=20",
        f"--trainer.accelerator={'gpu' if on_gpu else 'cpu'}",
        "--trainer.devices=1",
        f"--trainer.precision={'bf16-mixed' if on_gpu else '32-true'}",
        "--trainer.enable_progress_bar=false",
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={steps // 2}",
        "--trainer.limit_val_batches=2",
        "--trainer.log_every_n_steps=1",
    ]


def _start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """A command of vatt, the first of a group of processes."""
    command = [sys.executable, "-m", "vatt.cli", *arguments]
    return subprocess.Popen(command, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], ends: Callable[[], object] = lambda: None) -> int:
    """Exit code of a process; -1 if something else ended the wait, or it took too long.

    Args:
        process: Process to wait for.
        ends: Function that is called again and again; if it returns True, the wait is over.
    """
    until = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and time.monotonic() < until:
        if ends() is True:
            return -1
        time.sleep(0.02)
    return -1 if process.returncode is None else process.returncode


def _processes_left(group: int) -> int:
    """1 if any process of a group still runs after five seconds."""
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return 0
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return 1


def _column(run: Path, name: str) -> list[float]:
    """Values of a metric by step; empty before there are any."""
    path = run / METRICS
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def _shared_bytes() -> int:
    return shutil.disk_usage(SHARED_MEMORY).used if SHARED_MEMORY.exists() else 0
