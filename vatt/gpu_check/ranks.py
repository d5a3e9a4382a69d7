"""Stage `ranks`: DDP, FSDP2 and two processes on the one device train as a single process does."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from vatt.batch import Batch, MicroBatches
from vatt.config.presets import preset
from vatt.gpu_check.batches import full_batch
from vatt.gpu_check.figures import Row
from vatt.gpu_check.gradients import with_draws
from vatt.gpu_check.place import Place
from vatt.gpu_check.recipes import Losses, Recipe, train
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.model import VATT
from vatt.training.rank_forward import forward_on_rank

CLIPS, WORLD_SIZE, STEPS = 8, 2, 6
MOST = 1e-5  # float32 sums in another order
MOST_FLOAT64 = 1e-9
STRATEGIES = {
    "DDP": "--trainer.strategy=ddp",
    "FSDP2": "--config=overlay_fsdp",
}


def measure_ranks(place: Place) -> Iterator[Row]:
    """One process with each strategy, interrupted and resumed; then two processes."""
    options = ("--trainer.precision=32-true", "--run.checkpoint_every_n_steps=3")
    plain = Recipe(config="tiny", batch_size=CLIPS, options=options, max_steps=STEPS, saves=True)
    alone = _losses(plain, place.device)
    for name, option in STRATEGIES.items():
        recipe = replace(plain, options=(*options, option))
        losses = _losses(recipe, place.device)
        yield Row(name, "loss, off that of one process", _apart(losses, alone), at_most=MOST)
        resumed = _resumed_losses(recipe, place.device)
        apart = _apart(resumed, losses)
        yield Row(name, "loss after a resume, off", apart, at_most=MOST)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank_step, (folder, str(place.device)), nprocs=WORLD_SIZE)
        expected = _step(_batch(), place.device, distributed=False)
        for rank in range(WORLD_SIZE):
            values = torch.load(Path(folder) / f"{rank}.pt")
            for name, value in expected.items():
                apart = float((values[name] - value).norm() / value.norm())
                case = f"rank {rank} of {WORLD_SIZE} on one device"
                yield Row(case, f"{name}, off that of one process", apart, at_most=MOST_FLOAT64)


def _losses(recipe: Recipe, device: torch.device, run_dir: str | None = None) -> list[float]:
    losses = Losses()
    train(recipe, device, [losses], run_dir=run_dir)
    return losses.values


def _resumed_losses(recipe: Recipe, device: torch.device) -> list[float]:
    """Losses of a run that ends after half of its steps, and goes on from its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        half = STEPS // 2
        limit = f"--trainer.limit_train_batches={half}"
        ends = (*recipe.options, limit, "--trainer.max_epochs=1")
        first = _losses(replace(recipe, options=ends), device, folder)
        again = (*recipe.options, "--ckpt_path=last")
        return first + _losses(replace(recipe, options=again), device, folder)


def _apart(actual: list[float], expected: list[float]) -> float:
    """The largest relative difference; infinite if there are more or fewer steps."""
    if len(actual) != len(expected):
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(actual, expected, strict=True))


class _Training(nn.Module):
    """Network and loss in one module, as DDP wants them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = VATT(with_draws(preset("tiny"), dropout=0.0, drop_token=0.0)).train()
        self.loss = ContrastiveLoss(LossConfig())

    def forward(self, batch: Batch) -> Tensor:
        total: Tensor = self.loss(forward_on_rank(self.network, batch), batch).total
        return total


def _batch() -> Batch:
    torch.manual_seed(1)
    return replace(full_batch(preset("tiny"), CLIPS), seeds=None)


def _step(batch: Batch, device: torch.device, *, distributed: bool) -> dict[str, Tensor]:
    """Loss and gradient of a step in float64."""
    module: nn.Module = _Training().double().to(device)
    whole = DistributedDataParallel(module) if distributed else module
    total = whole(batch.to(device))
    total.backward()
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return {"loss": total.detach().cpu(), "gradient": torch.cat(gradients).cpu()}


def _rank_step(rank: int, folder: str, device: str) -> None:
    """A step of one rank of a gloo group: NCCL refuses two processes on one device."""
    method = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=WORLD_SIZE)
    part = MicroBatches.split(_batch(), CLIPS // WORLD_SIZE).parts[rank]
    values = _step(part, torch.device(device), distributed=True)
    torch.save(values, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
