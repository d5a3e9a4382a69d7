"""Common part of pre-training and fine-tuning: start, schedule, clipping, scores, checkpoints.

Both need the same Lightning hooks in the same order; with functions only, each would need a copy of
every hook.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from vatt.batch import Batch, MicroBatches
from vatt.config.model import VATTConfig
from vatt.errors import CheckpointError, UserError
from vatt.evaluation.embedding_table import ClipTable, concatenate
from vatt.models.checkpoint import CONFIG_KEY
from vatt.models.pretrained import VATT
from vatt.models.start_weights import check_same
from vatt.network.layers import Checkpointing
from vatt.network.model import backbone_and_head
from vatt.system.ranks import (
    any_rank,
    gather_objects,
    gather_to_first,
    object_of_first,
    places_in_set,
    world_size,
)
from vatt.training.compute import check_compiler, checkpoint_activations, compile_towers
from vatt.training.finite import (
    NonFiniteLossError,
    StepLoss,
    clips_and_remedy,
    refuse_non_finite,
    refuse_to_save,
)
from vatt.training.optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    reorder_state,
)
from vatt.training.sharding import is_sharded, shard, whole

T = TypeVar("T", bound=ClipTable)


def join_ranks(tables: Sequence[T]) -> T:
    """Table of a set of which rank `r` of `W` has the clips `r::W`; each clip counts once.

    Args:
        tables: Tables of all ranks in their order; some repeat first clips at their end.
    """
    return concatenate(tables).select(places_in_set([table.keys for table in tables]))


# clips of which every rank gets the scores: 0.5 GB on each GPU, at 26 kB (20 captions) a clip
LARGEST_SHARED_SET = 20_000


def measure_set(tables: Sequence[T], measure: Callable[[T], dict[str, float]]) -> dict[str, float]:
    """Metrics of a set of which rank `r` of `W` has the clips `r::W`; a collective.

    All ranks get the scores of all clips and measure. Of a set of more than `LARGEST_SHARED_SET`
    clips only the first rank gets them, through the memory of the hosts; it measures, and the
    others wait for its numbers.

    Args:
        tables: Scores of this rank's clips, batch by batch.
        measure: Metrics of the table of a whole set.

    Returns:
        The same metrics on every rank; none if no rank has a clip.
    """

    def joined(shares: Sequence[Sequence[T]]) -> dict[str, float]:
        filled = [concatenate(share) for share in shares if share]
        return measure(join_ranks(filled)) if filled else {}

    num_clips = world_size() * sum(map(len, tables))
    if world_size() == 1 or not any_rank(num_clips > LARGEST_SHARED_SET):
        return joined(gather_objects(tables))
    shares = gather_to_first([concatenate(tables)] if tables else [])
    return object_of_first(None if shares is None else joined(shares))


MAX_SKIPPED_STEPS = 10  # in a row; the host looks as often, and at the losses, too


class TrainingModule(LightningModule):
    """Trains a VATT; subclasses define the loss and load the initial weights.

    Args:
        model: Configuration of the network.
        optimizer: Optimiser and its settings.
        schedule: Learning rate over the run.
        init_from: Model folder, run or checkpoint that gives the initial weights, for example a
            converted checkpoint; ignored when a run is resumed. None: random weights.
        compile_towers: Whether to compile the encoders with `torch.compile`: the first steps take
            minutes, later steps are faster.
        checkpoint_activations: Whether to store only the input of each transformer block and
            recompute the rest in the backward pass: far less memory, a third more computation.
            `selective`: to store the results of dense layers, too: less than half of the memory,
            for little more computation. Compiled blocks do that by themselves.

    Raises:
        UserError: `selective` is to be used with compiled blocks.
    """

    def __init__(
        self,
        model: VATTConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        *,
        init_from: str | None = None,
        compile_towers: bool = False,
        checkpoint_activations: Checkpointing = False,
    ) -> None:
        if checkpoint_activations == "selective" and compile_towers:
            raise UserError(
                "checkpoint_activations selective does nothing for compiled blocks, which choose "
                "what to keep: set it to true or false, or compile_towers to false"
            )
        super().__init__()
        self.network = self.build_network(model)
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.init_from = init_from
        self.compile_towers = compile_towers
        self.checkpoint_activations = checkpoint_activations
        # share of a time budget that is spent; `vatt.runs.steps.TimeBudget` sets it
        self.time_share = 0.0
        self._tables: list[Any] = []
        self._skipped_in_row = torch.zeros(())
        self._losses: list[StepLoss] = []  # not checked yet
        self._last_keys: Sequence[str] = ()

    def build_network(self, model: Any) -> VATT:
        """Network of a configuration; open models of others have one of the same interface."""
        return VATT(model)

    def load_start(self, source: str) -> None:
        """Loads the weights of `init_from`.

        Raises:
            CheckpointError: the weights are missing or belong to another model.
        """
        raise NotImplementedError

    def check_shardable(self) -> None:
        """Refuses settings that do not work with FSDP2, because they need whole weights.

        Raises:
            UserError: there is such a setting.
        """

    @property
    def progress(self) -> float:
        """Completed share of the schedule, in [0, 1]: by steps or by time, whichever is larger."""
        schedule = self.schedule
        share = max(self.global_step / schedule.max_steps, self.time_share)
        return min(1.0, (schedule.start_step + share * schedule.max_steps) / schedule.total_steps)

    def setup(self, stage: str) -> None:
        """Compiles the network or sets up recomputation, if configured.

        Raises:
            UserError: there is no compiler.
        """
        if stage == "fit" and self.checkpoint_activations:
            checkpoint_activations(self.network, self.checkpoint_activations)
        if stage == "fit" and self.compile_towers:
            check_compiler(self.trainer.strategy.root_device)
            compile_towers(self.network)

    def configure_model(self) -> None:
        """Loads the initial weights and shards them, if the strategy is FSDP2.

        Raises:
            UserError: a setting does not allow sharding, or the initial weights cannot be used.
        """
        if self._device_mesh is None or is_sharded(self):
            return
        self.check_shardable()
        self._take_weights()
        shard(self, self._device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Loads the initial weights, unless a run is resumed.

        Raises:
            UserError: the weights are missing or belong to another model.
        """
        if not is_sharded(self):
            self._take_weights()

    @property
    def starts(self) -> bool:
        """Whether a training begins, rather than resumes."""
        return self.trainer.state.fn == "fit" and self.trainer.ckpt_path is None

    def _take_weights(self) -> None:
        if not self.starts or self.init_from is None:
            return
        try:
            self.load_start(self.init_from)
        except CheckpointError as error:
            raise UserError(f"init_from: {error}") from error

    def on_train_batch_start(self, batch: Batch | MicroBatches, batch_idx: int) -> None:
        """Sets the learning rate of this step, which depends only on the progress."""
        if self.global_step % MAX_SKIPPED_STEPS == 0:
            self.check_losses()
        factor = learning_rate_factor(self.schedule, self.progress)
        for group in self._optimizer().param_groups:
            rate = self.optimizer_config.learning_rate * factor
            group["lr"] = rate * group.get("lr_factor", 1.0)

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Logs a value; a number stays on the host.

        Lightning would copy it to the device, and wait for all that is queued there.
        """
        if isinstance(value, int | float) and not options.get("sync_dist"):
            value = torch.tensor(float(value))
        super().log(name, value, *args, **options)

    def note_loss(
        self, loss: Tensor, parts: Mapping[str, Tensor], batch: Batch | MicroBatches
    ) -> None:
        """Notes the loss of this step for `check_losses`, which waits for the device.

        Args:
            loss: Loss of this step.
            parts: Parts of the loss by name.
            batch: Batch whose clips an error names.
        """
        noted = StepLoss(
            step=self.global_step,
            learning_rate=self._optimizer().param_groups[0]["lr"],
            total=loss.detach(),
            parts={name: value.detach() for name, value in parts.items()},
            keys=batch.keys,
        )
        self._losses.append(noted)
        self._last_keys = batch.keys

    def check_losses(self) -> None:
        """Stops the run if a loss since the last check, or the gradients of all, are not finite.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite, or ten steps in a row were left out.
        """
        losses, self._losses = self._losses, []
        if not losses:
            return
        refuse_non_finite(losses)
        if int(self._skipped_in_row) >= MAX_SKIPPED_STEPS:
            raise NonFiniteLossError(
                f"the gradients of the last {MAX_SKIPPED_STEPS} steps before step "
                f"{self.global_step} were not finite, so no weight changed. "
                f"{clips_and_remedy(self._last_keys)}"
            )

    def score_batch(self, batch: Any) -> Any:
        """`ClipTable` with the scores of one batch; `measure` gets that of the whole set.

        Args:
            batch: Batch of the set.
        """
        raise NotImplementedError

    def measure(self, table: Any) -> dict[str, float]:
        """Metrics by name of the table of a whole set."""
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        """Checks the losses so far; clears the scores, also those of an interrupted pass."""
        self.check_losses()
        self._tables = []

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any] | None:
        """Collects the scores of one batch."""
        self._tables.append(self.score_batch(batch))
        return None

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Scores of one batch as a dict; Lightning refuses frozen dataclasses."""
        return vars(self.score_batch(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole set."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of the whole set."""
        self._log_metrics("test")

    def judge(self, metrics: Mapping[str, float]) -> None:
        """Warns of metrics of a whole set that tell of a model which learns nothing."""

    def _log_metrics(self, prefix: str) -> None:
        tables, self._tables = self._tables, []
        metrics = measure_set(tables, self.measure)
        self.judge(metrics)
        values = {f"{prefix}/{name}": value for name, value in metrics.items()}
        self.log_dict(values, sync_dist=world_size() > 1)  # the same on every rank

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norm of all gradients before clipping; if it is not finite, the step is skipped.

        A weight that the batch does not use gets gradient 0 instead of None, so its moments decay,
        as in the official code and with DDP.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        for parameter in trainable:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in trainable if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        self.log("train/grad_norm", norm)
        skips = (~norm.isfinite()).float()
        self._skipped_in_row = (self._skipped_in_row.to(norm.device) + 1) * skips
        self.log("train/skipped_steps", skips, reduce_fx="sum")
        # on the device: a loss scaler leaves this for the kernel, so that the host need not wait
        cast(Any, optimizer).found_inf = skips

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips gradients of backbone and heads separately, or all by the trainer's settings."""
        if not self.optimizer_config.clips:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        backbone, _ = backbone_and_head(self.network)
        in_backbone = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in in_backbone]
        clip_gradients(backbone, rest, self.optimizer_config)

    def configure_optimizers(self) -> Optimizer:
        """Optimiser of all trainable parameters of the network and the loss.

        Raises:
            UserError: two settings would both clip the gradients.
        """
        if self.optimizer_config.clips and self.trainer.gradient_clip_val:
            raise UserError(
                f"trainer.gradient_clip_val {self.trainer.gradient_clip_val} would clip what "
                "optimizer.clip_backbone and clip_head clip: set it to null, or them"
            )
        return build_optimizer(self, self.optimizer_config)

    def on_train_end(self) -> None:
        """Checks the last losses."""
        self.check_losses()

    def describe_network(self) -> dict[str, Any]:
        """Configuration of the network as plain containers, for a checkpoint."""
        return self.network.config.to_dict()

    def check_network(self, saved: dict[str, Any]) -> None:
        """Refuses a checkpoint of another network.

        Args:
            saved: What `describe_network` gave for the checkpoint.

        Raises:
            UserError: a setting differs; or CheckpointError.
        """
        check_same(VATTConfig.from_dict(saved), self.network.config, "the checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the model's configuration in the checkpoint, as plain containers.

        Raises:
            NonFiniteLossError: losses, weights or the optimiser's state are not finite, so that
                this checkpoint must not replace another.
        """
        self.check_losses()
        optimizer = self._optimizer() if checkpoint.get("optimizer_states") else None
        refuse_to_save(checkpoint, optimizer, self, self._last_keys)
        checkpoint[CONFIG_KEY] = self.describe_network()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another model; sorts the optimiser's state of an accepted one.

        Raises:
            UserError: the checkpoint's model or optimiser state does not fit; the error names the
                difference.
        """
        if CONFIG_KEY not in checkpoint:
            raise UserError(
                f"the checkpoint is not one of {type(self).__name__}: it has no {CONFIG_KEY!r}; "
                "give --ckpt_path one that `vatt fit` wrote"
            )
        try:
            self.check_network(checkpoint[CONFIG_KEY])
        except (UserError, CheckpointError) as error:
            raise UserError(f"{error}: use its run's config.yaml") from error
        names = checkpoint.get("state_dict", {})  # FSDP2 keeps it apart
        try:
            for state in checkpoint.get("optimizer_states", []):
                options = self.optimizer_config
                reorder_state(state, self, names, options.layer_decay, options.lr_factors)
                for group in state["param_groups"]:
                    if "fused" in group:  # some older runs of mixed precision were without
                        group["fused"] = True
        except CheckpointError as error:
            raise UserError(
                f"{error}: go on with the version of vatt that wrote the checkpoint, or start a "
                "new run from its weights (--model.init_args.init_from)"
            ) from error

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer
