"""Zero-shot retrieval by the published protocol, during training."""

from dataclasses import dataclass, field
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from vatt.encoders.own import VATTEncoder
from vatt.errors import UserError, fault_lines
from vatt.evaluation.zero_shot_retrieval import embed_items, evaluation_plan
from vatt.preprocess.tokenizer import Tokenizer
from vatt.sets.items import EvaluationSet
from vatt.sets.retrieval import Clips, read_retrieval_set
from vatt.training.sharding import is_sharded


@dataclass(eq=False, repr=False)
class RetrievalEvaluation(Callback):
    """Runs `vatt evaluate retrieval` at validations; logs `NAME/DIRECTION/AVERAGING/R@1` and so on.

    The ranks share the clips. It does not work with FSDP2, whose ranks must all make the same
    number of steps.

    Args:
        data: Shards, or an annotation file.
        videos: Folder of the files that the annotations name.
        split: Split of the annotations.
        clips: Clips of shards: `records` or `segments`.
        name: Prefix of the logged metrics.
        every_n_validations: Number of validations from one evaluation to the next, starting with
            the first.
        num_windows: Number of windows of each clip.
        frame_rate: Frames per second. None: the model's rate.
        batch_size: Clips per batch.
        num_workers: Reader processes per rank.

    Raises:
        UserError: the data cannot be used, or a number is invalid.
    """

    data: str
    videos: str | None = None
    split: str | None = None
    clips: Clips = "records"
    name: str = "retrieval"
    every_n_validations: int = 1
    num_windows: int = 4
    frame_rate: float | None = None
    batch_size: int = 8
    num_workers: int = 2
    _num_validations: int = field(default=0, init=False)
    _set: EvaluationSet | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuses invalid numbers."""
        counts = (self.every_n_validations, self.num_windows, self.batch_size)
        if min(counts) < 1 or self.num_workers < 0:
            raise UserError(
                "RetrievalEvaluation needs every_n_validations, num_windows and batch_size of at "
                f"least 1 and num_workers of at least 0, got {', '.join(map(str, counts))} and "
                f"{self.num_workers}"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the annotations, so that errors in them are reported before training."""
        if is_sharded(pl_module):
            raise UserError("RetrievalEvaluation does not go with FSDP2: take it out")
        self._set = read_retrieval_set(
            self.data, videos=self.videos, split=self.split, clips=self.clips
        )
        if trainer.is_global_zero:
            for line in fault_lines(self._set.missing, "missing"):
                print(line)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embeds the clips, and computes and logs the metrics."""
        if trainer.sanity_checking or self._set is None:
            return
        turn = self._num_validations % self.every_n_validations == 0
        self._num_validations += 1
        if not turn:
            return
        network = cast(Any, pl_module).network
        tokenizer = getattr(cast(Any, trainer).datamodule, "run_tokenizer", None)
        tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None
        encoder = VATTEncoder(network, tokenizer, pl_module.device, dtype="float32")
        has = encoder.modalities if tokenizer is not None else encoder.media_modalities
        tables = embed_items(
            encoder,
            self._set.items,
            evaluation_plan(encoder, num_windows=self.num_windows, frame_rate=self.frame_rate),
            modalities=has,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )
        named = {
            f"{self.name}/{direction}/{averaging}/{column}": value
            for averaging, directions in tables.metrics().items()
            for direction, row in directions.items()
            for column, value in row.items()
        }
        named[f"{self.name}/num_clips"] = float(len(tables.embeddings))
        pl_module.log_dict(named, sync_dist=trainer.world_size > 1)  # the same on every rank
