"""Fully sharded data parallel training (FSDP2): every rank stores a share of each weight.

Each step gathers all weights once and exchanges all gradients once. In a model of more than
`MOST_GATHERED` weights, those of a transformer block are gathered when it runs and released
afterwards, which a shared encoder does for each modality in turn. Results equal those of DDP.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vatt.network.layers import Encoder
from vatt.system.ranks import HANG_MINUTES

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

MOST_GATHERED = 1_000_000_000  # weights: in float32 they take 4 GB, and their gradients 4 GB
STEPS = ("training_step", "validation_step", "test_step", "predict_step", "encode_again")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes of a run; checkpoints are single files, as with DDP.

    Args:
        timeout_minutes: Time that ranks wait for each other before the run ends with an error.
    """

    def __init__(self, timeout_minutes: float = HANG_MINUTES) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        """Shards over all processes; Lightning's `auto` would shard over the number of nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Sets up without inference mode, because weights gathered in it could not be trained."""
        loops = (trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in (trainer.fit_loop.epoch_loop.val_loop, *loops):
            loop.inference_mode = False
        super().setup(trainer)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint; before any weight changes, the module may refuse the checkpoint."""
        assert self.lightning_module is not None
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        self.lightning_module.on_load_checkpoint(checkpoint)
        del checkpoint
        return super().load_checkpoint(checkpoint_path, weights_only)


def shard(module: LightningModule, mesh: "DeviceMesh") -> None:
    """Shards a module in place; its steps gather the weights that they need.

    Args:
        module: Module with all its weights, which are the same on all ranks.
        mesh: Device mesh of one dimension.
    """
    # FSDP2 takes no scalars; those of open models that are not trained have no use in its steps
    scalars = {p for p in module.parameters() if p.ndim == 0 and not p.requires_grad}
    if sum(weight.numel() for weight in module.parameters()) > MOST_GATHERED:
        for block in blocks_of(module):
            fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)
    for step in STEPS:
        if hasattr(module, step):
            register_fsdp_forward_method(module, step)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Transformer blocks of our encoders, and of open models those that transformers names."""
    for part in module.modules():
        if isinstance(part, Encoder):
            yield from part.blocks
    names = {
        name
        for part in module.modules()
        for name in getattr(part, "_no_split_modules", None) or ()
        if isinstance(name, str)
    }
    for part in module.modules():
        if type(part).__name__ in names:
            yield part


def is_sharded(module: LightningModule) -> bool:
    """Whether a module is sharded."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def whole(value: Tensor) -> Tensor:
    """Gathers a sharded tensor from all ranks (a collective); returns others unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value
