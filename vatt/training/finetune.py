"""Fine-tuning as a Lightning system: a pre-trained tower with a classifier, and its metrics.

Source: paper section 4.2 and appendix; google-research/vatt `experiments/finetune.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from vatt.batch import LabelledBatch
from vatt.config.model import VATTConfig
from vatt.errors import UserError
from vatt.evaluation.classification_metrics import multi_label_metrics, single_label_metrics
from vatt.evaluation.embedding_table import ClipTable, concatenate
from vatt.models.start_weights import load_backbone
from vatt.network.classification_loss import average_views, classification_loss, probabilities
from vatt.network.layers import Encoder
from vatt.system.csv_rows import write_rows
from vatt.system.ranks import gather_objects, rank
from vatt.training.module import TrainingModule, join_ranks
from vatt.training.optim import OptimizerConfig, ScheduleConfig
from vatt.training.rank_forward import forward_on_rank

SHOWN_CLASSES = 5  # of each file, in predictions


class FinetuneModule(TrainingModule):
    """Trains a classifier on one tower of a VATT.

    `init_from` gives the tower only; if clips are larger, positions are interpolated.

    Args:
        model: Configuration of the network, with one modality, a classifier and no head
            (`vatt.config.presets.as_classifier`).
        optimizer: Optimiser and its settings.
        schedule: Learning rate over the run.
        label_smoothing: Share of each target that is spread over all classes; 0.1 for video [P, C].
            Must be 0 for classifiers with several labels per clip.
        frozen: Part that is not trained and has no dropout. 0: nothing; n: the patch projection and
            the first n transformer blocks; `backbone`: everything except the classifier.
        options: Other arguments of `TrainingModule`.

    Raises:
        UserError: the model has no classifier or has a head, or `frozen` exceeds its blocks.
    """

    def __init__(
        self,
        model: VATTConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        label_smoothing: float = 0.0,
        frozen: int | Literal["backbone"] = 0,
        **options: Any,
    ) -> None:
        _check_model(model, label_smoothing)
        super().__init__(model, optimizer, schedule, **options)
        assert model.classifier is not None
        self.classifier = model.classifier
        self.label_smoothing = label_smoothing
        self.frozen = frozen
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def load_start(self, source: str) -> None:
        """Loads the weights of the tower, but not of the classifier."""
        load_backbone(self.network, source)

    def _frozen_parts(self) -> list[nn.Module]:
        """Modules that are not trained."""
        network = self.network
        tokens = network.tokens_of(self.classifier.modality)
        if self.frozen == "backbone":
            return [tokens, network.encoders, network.post_projections]
        (encoder,) = network.encoders.values()
        assert isinstance(encoder, Encoder)
        if not 0 <= self.frozen <= len(encoder.blocks):
            raise UserError(
                f"frozen is {self.frozen}: give backbone, or a number of blocks up to the "
                f"{len(encoder.blocks)} of the tower"
            )
        return [tokens, *encoder.blocks[: self.frozen]] if self.frozen else []

    def on_train_start(self) -> None:
        """Switches off the dropout of frozen modules; Lightning keeps it off."""
        for part in self._frozen_parts():
            part.eval()

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        logits, labels = self._logits(batch), batch.labels
        if self.label_smoothing:
            spread = self.label_smoothing / labels.shape[1]
            labels = labels * (1 - self.label_smoothing) + spread
        loss = classification_loss(logits, labels, multi_label=self.classifier.multi_label)
        self.note_loss(loss, {"classification": loss}, batch)
        measured = {
            "train/loss": loss.detach(),
            "train/learning_rate": self._optimizer().param_groups[0]["lr"],
        }
        if not self.classifier.multi_label:
            right = logits.argmax(dim=1) == batch.labels.argmax(dim=1)
            measured["train/accuracy"] = right.float().mean()
        self.log_dict(measured, batch_size=len(batch))
        return loss

    def save_predictions(self, parts: Sequence[dict[str, Any]], folder: Path) -> str:
        """Writes the results of `predict_step` for a set as `predictions.csv`.

        The file lists the best classes of each file with their probabilities; unreadable files have
        none.

        Returns:
            A line that tells the user what was written.
        """
        table = join_ranks(gather_objects(concatenate([ScoreTable(**part) for part in parts])))
        classes = getattr(cast(Any, self.trainer).datamodule, "run_classes", None)
        names = classes.names if classes else [str(n) for n in range(table.logits.shape[1])]
        shares = probabilities(table.logits, multi_label=self.classifier.multi_label)
        best = shares.topk(min(SHOWN_CLASSES, shares.shape[1]), dim=1)
        ranks = range(1, best.values.shape[1] + 1)
        rows = [["file", *(f"{what}{n}" for n in ranks for what in ("class", "share"))]]
        for row, key in enumerate(table.keys):
            pairs = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
            found = [cell for number, share in pairs for cell in (names[number], f"{share:.6f}")]
            rows.append([key, *(found if table.present[row] else [])])
        out = folder / "predictions.csv"
        if rank() == 0:
            write_rows(out, rows)
        return f"predictions for {int(table.present.sum())} files: {out}"

    def _logits(self, batch: LabelledBatch) -> Tensor:
        logits = forward_on_rank(self.network, batch).logits
        if logits is None:  # nothing of the batch could be read
            logits = batch.labels.new_zeros(len(batch), self.classifier.num_classes)
        return logits

    def score_batch(self, batch: LabelledBatch) -> "ScoreTable":
        """Scores of one batch; the logits of a clip's views are averaged before the softmax."""
        views = batch.num_views
        return ScoreTable(
            logits=average_views(self._logits(batch), views).float().cpu(),
            labels=batch.labels[::views].cpu(),
            present=batch.masks[self.classifier.modality][::views].cpu(),
            keys=batch.keys[::views],
        )

    def measure(self, table: "ScoreTable") -> dict[str, float]:
        """Metrics over all readable clips of the set, and the number of unreadable ones."""
        seen = table.select(table.present.nonzero()[:, 0].tolist())
        counts = {"num_clips": float(len(seen)), "num_unread": float(len(table) - len(seen))}
        if not len(seen):
            return counts
        if self.classifier.multi_label:
            return {**counts, **multi_label_metrics(seen.logits, seen.labels)}
        loss = classification_loss(seen.logits, seen.labels, multi_label=False)
        metrics = single_label_metrics(seen.logits, seen.labels)
        return {**counts, "loss": float(loss), **metrics}


@dataclass(frozen=True, kw_only=True)
class ScoreTable(ClipTable):
    """Scores of some clips.

    Args:
        logits: float32 `[B, C]`, mean over the views of each clip.
        labels: float32 `[B, C]`, 0 and 1.
        present: bool `[B]`, False if a clip could not be read.
    """

    logits: Tensor
    labels: Tensor
    present: Tensor


def _check_model(model: VATTConfig, label_smoothing: float) -> None:
    """Refuses a model that is not a classifier, before the network is built."""
    if model.classifier is None or model.head is not None:
        raise UserError(
            "fine-tuning needs model.classifier, and model.head null: start from a recipe such as "
            "--config finetune_own"
        )
    if model.modalities != (model.classifier.modality,):
        raise UserError(
            f"the classifier reads {model.classifier.modality}: set model.modalities to "
            f"[{model.classifier.modality}], got {list(model.modalities)}"
        )
    if not 0 <= label_smoothing < 1 or (label_smoothing and model.classifier.multi_label):
        raise UserError(
            "label_smoothing must be in [0, 1), and 0 where classifier.multi_label is true, got "
            f"{label_smoothing}"
        )
