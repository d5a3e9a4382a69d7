"""Contrastive pre-training as a Lightning system: network, losses, optimiser, retrieval metrics."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from vatt.accumulation import forward_cached
from vatt.batch import Batch, MicroBatches
from vatt.checkpoint import CONFIG_KEY, check_same, load_optimizer_state, load_weights
from vatt.compute import checkpoint_activations, compile_towers
from vatt.config import VATTConfig
from vatt.errors import UserError
from vatt.evaluate import EmbeddingTable, concatenate, embed_batch, retrieval
from vatt.losses import PAIRS, ContrastiveLoss, LossConfig, LossOutput
from vatt.model import VATT
from vatt.optim import (
    OptimizerConfig,
    ScheduleConfig,
    backbone_and_head,
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    reorder_state,
)
from vatt.ranks import world_size
from vatt.sharding import is_sharded, shard, whole


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; raised before the weights are touched."""


class PretrainModule(LightningModule):
    """Trains a VATT by contrasting video with audio and video with text.

    Args:
        model: The network's configuration.
        loss: Which contrastive loss.
        optimizer: Which optimiser.
        schedule: The learning rate over the run.
        init_from: Model folder or checkpoint whose weights training starts from, for example a
            converted one; not read when a run is resumed. None: random weights.
        init_optimizer: Whether the optimiser starts from the state beside them, too
            (`vatt convert --optimizer`).
        micro_batch_size: Clips whose activations are in memory at a time, per rank: the encoders
            see so many, heads and loss the whole batch (`vatt.accumulation`). It costs a second
            forward pass. None: all clips of a rank at once.
        compile_towers: Whether training runs through `torch.compile`: the first steps take minutes,
            the others less time.
        checkpoint_activations: Whether training keeps only what enters each transformer block and
            computes the rest again: far less memory, a third more computing.

    Raises:
        UserError: the model's head has no space for a pair that the loss weighs.
    """

    def __init__(
        self,
        model: VATTConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        init_from: str | None = None,
        init_optimizer: bool = False,
        micro_batch_size: int | None = None,
        compile_towers: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        _check_spaces(model, loss)
        if init_optimizer and init_from is None:
            raise UserError("init_optimizer needs init_from: whose optimiser's state to take")
        self.network = VATT(model)
        self.loss = ContrastiveLoss(loss)
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.init_from = init_from
        self.init_optimizer = init_optimizer
        self.micro_batch_size = micro_batch_size
        self.compile_towers = compile_towers
        self.checkpoint_activations = checkpoint_activations
        self.time_share = (
            0.0  # share of a time budget that is spent; `callbacks.TimeBudget` sets it
        )
        self._tables: list[EmbeddingTable] = []

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, by steps or time, the further of both; in [0, 1]."""
        schedule = self.schedule
        share = max(self.global_step / schedule.max_steps, self.time_share)
        return min(1.0, (schedule.start_step + share * schedule.max_steps) / schedule.total_steps)

    def setup(self, stage: str) -> None:
        """Chooses how training computes; what is trained stays the same."""
        if stage == "fit" and self.checkpoint_activations:
            checkpoint_activations(self.network)
        if stage == "fit" and self.compile_towers:
            compile_towers(self.network)

    def configure_model(self) -> None:
        """Shards the weights where the strategy is FSDP2, once they are there.

        Raises:
            UserError: what cannot be sharded, or what is wrong with the weights to start from.
        """
        if self._device_mesh is None or is_sharded(self):
            return
        if self.micro_batch_size is not None or self.init_optimizer:
            raise UserError(
                "micro_batch_size and init_optimizer need whole weights: set them to null and "
                "false, or trainer.strategy to ddp"
            )
        self._take_weights()
        shard(self, self._device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Takes the weights to start from, unless a run goes on with its own.

        Raises:
            UserError: they are not there, or are those of another model.
        """
        if not is_sharded(self):
            self._take_weights()

    def _take_weights(self) -> None:
        fits = self.trainer.state.fn == "fit"
        if not fits or self.init_from is None or self.trainer.ckpt_path is not None:
            return
        try:
            load_weights(self.network, self.init_from)
            if self.init_optimizer:
                load_optimizer_state(self._optimizer(), self.network, self.init_from)
        except ValueError as error:
            raise UserError(f"init_from: {error}") from error

    def on_train_batch_start(self, batch: Batch | MicroBatches, batch_idx: int) -> None:
        """Sets the learning rate of this step: a function of the progress, so it needs no state."""
        self.loss.bound_temperatures()
        factor = learning_rate_factor(self.schedule, self.progress)
        for group in self._optimizer().param_groups:
            group["lr"] = self.optimizer_config.learning_rate * factor

    def training_step(self, batch: Batch | MicroBatches, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if self.micro_batch_size is not None and isinstance(batch, Batch):
            batch = MicroBatches.split(batch, self.micro_batch_size)
        if isinstance(batch, MicroBatches):
            output = forward_cached(self.network, batch)
        else:
            output = self.network(batch)
        loss: LossOutput = self.loss(output, batch)
        self._refuse_non_finite(loss, batch)
        self.log("train/loss", loss.total.detach(), batch_size=len(batch))
        self.log_dict(self._measurements(loss, batch.masks), batch_size=len(batch))
        return loss.total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norm of all gradients, before clipping.

        What a batch says nothing about has gradient 0, not none: its moments decay, as officially
        and as with several ranks.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        for parameter in trainable:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in trainable if p.grad is not None]
        self.log("train/grad_norm", whole(torch.nn.utils.get_total_norm(gradients)))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips backbone and head apart, or all gradients as the trainer's settings say."""
        if self.optimizer_config.clips:
            backbone, head = backbone_and_head(self.network)
            clip_gradients(backbone, [*head, *self.loss.parameters()], self.optimizer_config)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_validation_epoch_start(self) -> None:
        """Starts with an empty gallery."""
        self._tables = []

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Embeds a batch with all captions; returns the fields of its `EmbeddingTable`."""
        self._tables.append(embed_batch(self.network, batch))
        return vars(self._tables[-1])

    def on_validation_epoch_end(self) -> None:
        """Logs the retrieval metrics of all directions over the whole set."""
        self._log_retrieval("val")

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self._tables = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self._tables.append(embed_batch(self.network, batch))

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_retrieval("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Fields of the `EmbeddingTable` of one batch; Lightning refuses frozen dataclasses."""
        return vars(embed_batch(self.network, batch))

    def configure_optimizers(self) -> Optimizer:
        """The optimiser of the network and of the temperatures, where they learn.

        Raises:
            UserError: the gradients would be clipped twice.
        """
        if self.optimizer_config.clips and self.trainer.gradient_clip_val:
            raise UserError(
                f"trainer.gradient_clip_val {self.trainer.gradient_clip_val} would clip what "
                "optimizer.clip_backbone and clip_head clip: set it to null, or them"
            )
        fused = "mixed" not in self.trainer.precision  # Lightning clips no fused ones there
        return build_optimizer(self, self.optimizer_config, fused=fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint describe its model, in plain containers."""
        checkpoint[CONFIG_KEY] = self.network.config.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the weights of another geometry, naming what differs; orders what it takes.

        Raises:
            UserError: the checkpoint's model or its optimiser's state is not of this one.
        """
        if CONFIG_KEY not in checkpoint:
            raise UserError(
                f"the checkpoint is not one of {type(self).__name__}: it has no {CONFIG_KEY!r}; "
                "give --ckpt_path one that `vatt fit` wrote"
            )
        theirs = VATTConfig.from_dict(checkpoint[CONFIG_KEY])
        try:
            check_same(theirs, self.network.config, "the checkpoint")
        except ValueError as error:
            raise UserError(f"{error}: use its run's config.yaml") from error
        names = checkpoint.get("state_dict", {})  # FSDP2 keeps it apart
        try:
            for state in checkpoint.get("optimizer_states", []):
                reorder_state(state, self, names)
        except ValueError as error:
            raise UserError(
                f"{error}: go on with the version of vatt that wrote the checkpoint, or start a "
                "new run from its weights (--model.init_args.init_from)"
            ) from error

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _measurements(
        self, loss: LossOutput, masks: dict[str, Tensor]
    ) -> dict[str, Tensor | float]:
        parts = {
            "loss": loss.losses,
            "accuracy": loss.accuracies,
            "temperature": loss.temperatures,
            "bias": loss.biases,
        }
        return {
            **{f"train/{kind}_{pair}": v for kind, of in parts.items() for pair, v in of.items()},
            "train/learning_rate": self._optimizer().param_groups[0]["lr"],
            "data/audio_coverage": _share_present(masks.get("audio")),
            "data/text_coverage": _share_present(masks.get("text")),
        }

    def _refuse_non_finite(self, loss: LossOutput, batch: Batch | MicroBatches) -> None:
        if torch.isfinite(loss.total):
            return
        broken = [
            f"{pair.replace('_', '-')} {value.item()}"
            for pair, value in loss.losses.items()
            if not value.isfinite()
        ]
        raise NonFiniteLossError(
            f"the loss is not finite at step {self.global_step} ({', '.join(broken)}; learning "
            f"rate {self._optimizer().param_groups[0]['lr']:.3g}). Clips of the batch: "
            f"{', '.join(batch.keys[:8]) or 'unnamed'}{' …' if len(batch.keys) > 8 else ''}. Lower "
            "the learning rate, clip gradients (--trainer.gradient_clip_val 1), or look at these."
        )

    def _log_retrieval(self, prefix: str) -> None:
        tables, self._tables = self._tables, []
        ranks: list[Any] = [tables]
        if world_size() > 1:  # each rank embedded its share of the set
            ranks = [None] * world_size()
            dist.all_gather_object(ranks, tables)
        parts = [concatenate(share) for share in ranks if share]
        if not parts:
            return
        metrics = retrieval(join_ranks(parts))
        named = {
            f"{prefix}/{direction}/{name}": value
            for direction, values in metrics.items()
            for name, value in values.items()
        }
        self.log_dict(named, sync_dist=world_size() > 1)  # the same on every rank


def join_ranks(parts: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """The table of a set of which rank `r` of `W` embedded the records `r::W`.

    Some ranks embed first records again, so that all make the same number of steps: these are left
    out here, each record counts once.

    Args:
        parts: Those of all ranks, in their order.
    """
    joined, start = concatenate(parts), 0
    places = []  # record, then its row in `joined`
    for rank, part in enumerate(parts):
        places += [(rank + len(parts) * row, start + row) for row in range(len(part))]
        start += len(part)
    rows = [row for _, row in sorted(places)]
    keys = [joined.keys[row] for row in rows]
    repeated = (n for n in range(len(parts) - 1, 0, -1) if all(keys[:n]) and keys[-n:] == keys[:n])
    return joined.select(rows[: len(rows) - next(repeated, 0)])


def _check_spaces(model: VATTConfig, loss: LossConfig) -> None:
    """Refuses a loss whose modalities never meet in the model, before anything is built."""
    if model.head is None:
        raise UserError("pre-training needs common spaces: model.head must not be null")
    for name, weight in loss.weights.items():
        pair = PAIRS[name]
        absent = {pair.first, pair.second} - set(model.modalities)
        if weight > 0 and absent:
            raise UserError(
                f"loss.{name}_weight is {weight}, but the model has no {absent.pop()}: set it to 0"
            )
        if weight > 0 and pair.fac_space is None and model.head.kind == "fac":
            raise UserError(
                f"loss.{name}_weight is {weight}, but the fac head has no space for that pair: "
                "set it to 0, or head.kind to joint"
            )


def _share_present(mask: Tensor | None) -> Tensor | float:
    """Share of the clips that have a modality, from a mask `[B]` or `[B, K]`."""
    return 0.0 if mask is None else mask.reshape(len(mask), -1).any(dim=1).float().mean()
