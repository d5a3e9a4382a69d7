"""Training runs for tests: the command line over the tiny corpus, and what a run left."""

import csv
import errno
import json
import math
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from vatt.batch import Batch
from vatt.system.ranks import rank

STEPS = 10
# no draws, which differ between ranks and micro-batches; Adam makes much of how float32 rounds sums
EXACT = [
    "--model.init_args.model.drop_token=0",
    "--model.init_args.model.encoder.dropout=0",
    "--trainer.precision=64-true",
]


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


class FillDisk(Callback):
    """Fails as a full disk does, at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some.file")


class RecordKeys(Callback):
    """Writes down which clips each rank is given."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        line = json.dumps([trainer.global_step, list(batch.keys)])
        folder = Path(trainer.default_root_dir) / f"keys-of-{trainer.world_size}"
        folder.mkdir(exist_ok=True, parents=True)
        with (folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(f"{line}\n")


def read_keys(run: Path) -> dict[int, list[str]]:
    """Clips of each step over all ranks; a step that was done again with others fails."""
    steps: dict[int, list[str]] = {}
    for folder in sorted(run.glob("keys-of-*")):
        ranks = [path.read_text().splitlines() for path in sorted(folder.glob("*.jsonl"))]
        for lines in zip(*ranks, strict=True):
            shares = [json.loads(line) for line in lines]
            assert len({step for step, _ in shares}) == 1
            step, keys = shares[0][0], []
            for row in zip(*(keys_of_rank for _, keys_of_rank in shares), strict=True):
                keys += row
            assert steps.setdefault(step, keys) == keys
    return steps


class SendSignal(Callback):
    """Sends this process a signal: at a step, in the validation after it, or before training.

    Where `rank` is given, only that rank does.
    """

    def __init__(
        self,
        when: Literal["start", "trial", "step", "validation"],
        number: int,
        times: int,
        step: int,
        rank: int | None = None,
    ) -> None:
        self.when, self.number, self.times, self.step = when, number, times, step
        self.rank = rank

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        self._send("start")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self._send("step")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self._send("trial")
        elif trainer.global_step == self.step:
            self._send("validation")

    def _send(self, moment: str) -> None:
        if self.rank not in (None, rank()):
            return
        while moment == self.when and self.times:
            self.times -= 1
            os.kill(os.getpid(), self.number)


class BreakOneRank(Callback):
    """Spoils the weights of the second rank at a step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (2, 1):
            with torch.no_grad():
                next(iter(pl_module.parameters())).fill_(torch.nan)


class BreakGradients(Callback):
    """Spoils one gradient of the steps from `first` on, `count` in all."""

    def __init__(self, first: int, count: int) -> None:
        self.steps = range(first, first + count)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step in self.steps:
            next(p.grad for p in pl_module.parameters() if p.grad is not None).fill_(torch.nan)


class BreakState(Callback):
    """Spoils one value after a step: of the weights, or of the state of the optimiser."""

    def __init__(self, step: int, kind: str) -> None:
        self.step, self.kind = step, kind

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            weight = next(p for p in pl_module.parameters() if p.grad is not None)
            state = trainer.optimizers[0].state[weight]
            broken = weight.data if self.kind == "weights" else state[self.kind]
            broken.view(-1)[0] = torch.inf


class CountExchanges(TorchDispatchMode, Callback):
    """Counts what the ranks exchange from the start of a step to that of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **kwargs or {})

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            self.__enter__()
        elif trainer.global_step == 5:
            self.__exit__(None, None, None)
            (Path(trainer.default_root_dir) / "exchanges.json").write_text(json.dumps(self.counts))


class KillOnce(Callback):
    """Kills the second rank before a step, in the first of the attempts to train."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        done = Path(trainer.default_root_dir) / "killed"
        if (trainer.global_step, trainer.global_rank) == (self.step, 1) and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def signal_options(
    when: str, number: signal.Signals, *, step: int = 0, times: int = 1, rank: int | None = None
) -> list[str]:
    return [
        "--trainer.callbacks+=training_runs.SendSignal",
        f"--trainer.callbacks.when={when}",
        f"--trainer.callbacks.number={int(number)}",
        f"--trainer.callbacks.times={times}",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.rank={'null' if rank is None else rank}",
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


class RecordNorms(Callback):
    """Writes the norms of the gradients with which the last step was made, by part."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        head = ("network.head.", "loss.")
        norms: dict[str, float] = {"backbone": 0.0, "head": 0.0}
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                part = "head" if name.startswith(head) else "backbone"
                norms[part] = math.hypot(norms[part], float(parameter.grad.norm()))
        (Path(trainer.default_root_dir).parent / "norms.json").write_text(json.dumps(norms))


class RecordWeights(Callback):
    """Keeps the weights in training after each step, and those that are validated."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._keep(trainer, module, "trained")

    def on_validation_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._keep(trainer, module, "validated")

    def _keep(self, trainer: Trainer, module: LightningModule, kind: str) -> None:
        folder = Path(trainer.default_root_dir).parent
        torch.save(module.state_dict(), folder / f"{kind}-{trainer.global_step}.pt")
