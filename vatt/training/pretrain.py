"""Contrastive pre-training as a Lightning system: network, losses, optimiser, retrieval metrics."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save
from torch import Tensor

from vatt.batch import Batch, Facts, MicroBatches
from vatt.config.model import HeadConfig, VATTConfig
from vatt.errors import UserError
from vatt.evaluation.embedding_table import EmbeddingTable, concatenate, embed_batch
from vatt.evaluation.retrieval import retrieval
from vatt.models.start_weights import load_optimizer_state, load_weights
from vatt.models.text_vectors import load_text_vectors
from vatt.network.contrastive_loss import PAIRS, ContrastiveLoss, LossConfig, LossOutput
from vatt.preprocess.tokenizer import Tokenizer
from vatt.system.files import write_atomically
from vatt.system.ranks import gather_objects, rank
from vatt.training.accumulation import forward_cached
from vatt.training.module import TrainingModule, join_ranks
from vatt.training.optim import OptimizerConfig, ScheduleConfig
from vatt.training.rank_forward import forward_on_rank

logger = logging.getLogger(__name__)


class PretrainModule(TrainingModule):
    """Trains a VATT by contrasting video with audio and video with text.

    Args:
        model: Configuration of the network.
        loss: Contrastive loss and its settings.
        optimizer: Optimiser and its settings.
        schedule: Learning rate over the run.
        init_optimizer: Whether to load the optimiser's state from `init_from`, too
            (`vatt convert --optimizer` stores it).
        text_vectors: File with the word vectors to start from (`vatt.models.text_vectors`); words
            are matched by the tokenizer of the data. The official code starts from word2vec and
            keeps it: set `model.text.train_embedding` to false. None: those of `init_from`, or
            random ones.
        micro_batch_size: Number of clips per rank whose activations are in memory at a time. The
            encoders run on this many clips, heads and loss on the whole batch
            (`vatt.training.accumulation`). It costs a second forward pass. None: all clips of a
            rank at once.
        options: Other arguments of `TrainingModule`.

    Raises:
        UserError: the loss uses a pair of modalities for which the model's head has no space.
    """

    def __init__(
        self,
        model: VATTConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        init_optimizer: bool = False,
        micro_batch_size: int | None = None,
        text_vectors: str | None = None,
        **options: Any,
    ) -> None:
        loss = self.possible_loss(model, loss)
        super().__init__(model, optimizer, schedule, **options)
        if init_optimizer and self.init_from is None:
            raise UserError("init_optimizer needs init_from: whose optimiser's state to take")
        self.loss = ContrastiveLoss(loss)
        self.init_optimizer = init_optimizer
        self.micro_batch_size = micro_batch_size
        self.text_vectors = text_vectors

    def possible_loss(self, model: Any, loss: LossConfig) -> LossConfig:
        """The loss without pairs of modalities that the model lacks; before the network is built.

        Raises:
            UserError: a pair has no common space, or none is left.
        """
        return _possible(model, loss)

    def load_start(self, source: str) -> None:
        """Loads the initial weights and, if `init_optimizer` is set, the optimiser's state."""
        load_weights(self.network, source)
        if self.init_optimizer:
            load_optimizer_state(self._optimizer(), self.network, source)

    def _take_weights(self) -> None:
        super()._take_weights()
        if not self.starts:
            return
        if self.text_vectors is not None:
            tokenizer = getattr(cast(Any, self.trainer).datamodule, "run_tokenizer", None)
            if not isinstance(tokenizer, Tokenizer):
                raise UserError("text_vectors need data with a tokenizer, such as PretrainData")
            load_text_vectors(self.network, self.text_vectors, tokenizer)
        elif self.init_from is None and not self.network.config.text.train_embedding and not rank():
            logger.warning(
                "model.text.train_embedding is false, and the word vectors are random: they stay "
                "so; give model.init_args.text_vectors"
            )

    def check_shardable(self) -> None:
        """Refuses settings that need whole weights in every process."""
        if self.micro_batch_size is not None or self.init_optimizer:
            raise UserError(
                "micro_batch_size and init_optimizer need whole weights: set them to null and "
                "false, or trainer.strategy to ddp"
            )

    def on_train_batch_start(self, batch: Batch | MicroBatches, batch_idx: int) -> None:
        """Clamps the temperatures, and sets the learning rate of this step."""
        self.loss.bound_temperatures()
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Batch | MicroBatches, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if self.micro_batch_size is not None and isinstance(batch, Batch):
            batch = MicroBatches.split(batch, self.micro_batch_size)
        if isinstance(batch, MicroBatches):
            output = forward_cached(self.network, batch)
        else:
            output = forward_on_rank(self.network, batch)
        loss: LossOutput = self.loss(output, batch)
        parts = {pair.replace("_", "-"): value for pair, value in loss.losses.items()}
        self.note_loss(loss.total, parts, batch)
        self.log("train/loss", loss.total.detach(), batch_size=len(batch))
        self.log_dict(self._measurements(loss, batch.facts), batch_size=len(batch))
        return loss.total

    def score_batch(self, batch: Batch) -> EmbeddingTable:
        """Embeddings of one batch, with all captions."""
        return embed_batch(self.network, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Embeds a batch; returns the fields of its `EmbeddingTable`."""
        super().validation_step(batch, batch_idx)
        return vars(self._tables[-1])

    def measure(self, table: EmbeddingTable) -> dict[str, float]:
        """Retrieval metrics of all directions over the whole set."""
        return {
            f"{direction}/{name}": value
            for direction, values in retrieval(table).items()
            for name, value in values.items()
        }

    @staticmethod
    def save_predictions(parts: Sequence[dict[str, Any]], folder: Path) -> str:
        """Writes the results of `predict_step` for a set as `embeddings.safetensors`.

        Embeddings and masks are tensors; the keys of the clips are JSON in the file's metadata.

        Returns:
            A line that tells the user what was written.
        """
        table = join_ranks(gather_objects(concatenate([EmbeddingTable(**part) for part in parts])))
        out = folder / "embeddings.safetensors"
        tensors = {name: value for name, value in vars(table).items() if isinstance(value, Tensor)}
        if rank() == 0:
            write_atomically(out, save(tensors, metadata={"keys": json.dumps(table.keys)}))
        return f"embeddings of {len(table)} clips: {out}"

    def _measurements(self, loss: LossOutput, facts: Facts) -> dict[str, Tensor | float]:
        parts = {
            "loss": loss.losses,
            "accuracy": loss.accuracies,
            "temperature": loss.temperatures,
            "bias": loss.biases,
        }
        return {
            **{f"train/{kind}_{pair}": v for kind, of in parts.items() for pair, v in of.items()},
            "train/learning_rate": self._optimizer().param_groups[0]["lr"],
            "data/audio_coverage": facts.coverage("audio"),
            "data/text_coverage": facts.coverage("text"),
        }


def _possible(model: VATTConfig, loss: LossConfig) -> LossConfig:
    """The loss without pairs of modalities that the model lacks; before the network is built.

    Raises:
        UserError: a pair has no common space, or none is left.
    """
    if model.head is None:
        raise UserError("pre-training needs common spaces: model.head must not be null")
    loss = without_absent(model.modalities, loss)
    check_spaces(model.head, loss)
    return loss


def check_spaces(head: HeadConfig, loss: LossConfig) -> None:
    """Refuses a pair of modalities for which a head has no space."""
    for name, weight in loss.weights.items():
        if weight > 0 and PAIRS[name].fac_space is None and head.kind == "fac":
            raise UserError(
                f"loss.{name}_weight is {weight}, but the fac head has no space for that pair: "
                "set it to 0, or head.kind to joint"
            )


def without_absent(
    modalities: Sequence[str], loss: LossConfig, *, warns: bool = True
) -> LossConfig:
    """The loss without pairs of modalities of which a model lacks one.

    Args:
        modalities: Those of the model.
        loss: Settings of the loss.
        warns: Whether to warn of pairs that are left out.

    Raises:
        UserError: none is left.
    """
    off: dict[str, Any] = {}
    for name, weight in loss.weights.items():
        pair = PAIRS[name]
        absent = {pair.first, pair.second} - set(modalities)
        if weight > 0 and absent:
            missing = " and no ".join(sorted(absent))
            if warns:
                logger.warning("the model has no %s: loss.%s_weight is taken as 0", missing, name)
            off[f"{name}_weight"] = 0.0
    return replace(loss, **off)
