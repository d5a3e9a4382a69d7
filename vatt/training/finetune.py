"""Fine-tuning as a Lightning system: a pre-trained tower with a classifier, and its metrics.

Source: paper section 4.2 and appendix; google-research/vatt `experiments/finetune.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
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

logger = logging.getLogger(__name__)

SHOWN_CLASSES = 5  # of each file, in predictions
LEAST_FILES = 10  # without labels, of which all may not get the same class without a warning
LEAST_STEPS, LEAST_FALL = 30, 0.99  # of a run, whose last ten losses are compared with the first


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
        self._batch: LabelledBatch | None = None  # of the step, until its end
        self._told = False  # that all files get the same class
        self._first_and_last: tuple[Tensor, Tensor] | None = None  # mean losses of ten steps
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

    def on_train_batch_end(self, outputs: Any, batch: LabelledBatch, batch_idx: int) -> None:
        """Corrects the statistics of features before a validation, and forgets the batch."""
        trainer, interval = self.trainer, self.trainer.val_check_batch
        # intervals of time say None: then any step may be the last before a validation
        is_due = interval is None or (trainer.fit_loop.total_batch_idx + 1) % interval == 0
        ends_epoch = trainer.is_last_batch and trainer.check_val_every_n_epoch is not None
        if is_due or ends_epoch or trainer.should_stop:
            self._catch_up()
        self._batch = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Corrects the statistics of features, then stores what `TrainingModule` does."""
        self._catch_up()
        super().on_save_checkpoint(checkpoint)

    @torch.no_grad()
    def _catch_up(self) -> None:
        """Corrects the statistics of standardised features by the last batch; a collective.

        Those in a checkpoint share their memory with these, except with FSDP2.
        """
        assert self.network.classifier is not None
        standardize, batch = self.network.classifier.standardize, self._batch
        if standardize is None or batch is None:
            return
        features = self.encode_again(batch)
        if features is not None:
            standardize.catch_up(features[batch.masks[self.classifier.modality]])

    def encode_again(self, batch: LabelledBatch) -> Tensor | None:
        """Features of the clips of a batch by the present weights, float `[B, D]`."""
        modes = {part: part.training for part in self.network.modules()}
        self.network.eval()
        self.network.training = True  # for `forward_on_rank`; its parts have no dropout
        with self.trainer.precision_plugin.forward_context():
            output = forward_on_rank(self.network, batch)
        for part, mode in modes.items():
            part.training = mode
        return output.features.get(self.classifier.modality)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        self._batch = batch
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
        none. Where labels are known, the metrics are told, too.

        Returns:
            A line that tells the user what was written.
        """
        table = join_ranks(gather_objects(concatenate([ScoreTable(**part) for part in parts])))
        classes = getattr(cast(Any, self.trainer).datamodule, "run_classes", None)
        names = classes.names if classes else [str(n) for n in range(table.logits.shape[1])]
        scores = probabilities(table.logits, multi_label=self.classifier.multi_label)
        best = scores.topk(min(SHOWN_CLASSES, scores.shape[1]), dim=1)
        ranks = range(1, best.values.shape[1] + 1)
        rows = [["file", *(f"{what}{n}" for n in ranks for what in ("class", "probability"))]]
        for row, key in enumerate(table.keys):
            pairs = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
            found = [cell for number, value in pairs for cell in (names[number], f"{value:.6f}")]
            rows.append([key, *(found if table.present[row] else [])])
        out = folder / "predictions.csv"
        if rank() == 0:
            write_rows(out, rows)
        return f"predictions for {self._summary(table)}: {out}"

    def _summary(self, table: "ScoreTable") -> str:
        """Number of files, with metrics if labels are known; warns as validation does."""
        num_read = int(table.present.sum())
        parts = [f"{num_read} files"]
        if num_read < len(table):
            parts.append(f"{len(table) - num_read} could not be read")
        if bool(table.labels.any()):
            metrics = self.measure(table)
            shown = {"top1": "top-1", "top5": "top-5", "mAP": "mAP", "AUC": "AUC"}
            parts += [f"{shown[key]} {metrics[key]:.1f}" for key in shown if key in metrics]
            self.judge(metrics)
        elif num_read >= LEAST_FILES and not self.classifier.multi_label:
            chosen = table.logits[table.present].argmax(dim=1)
            self._tell_of_one_answer(num_read, len(chosen.unique()))
        return ", ".join(parts)

    def judge(self, metrics: Mapping[str, float]) -> None:
        """Warns if all files get the same class; while training, once and in its second half."""
        fits = self._trainer is not None and self._trainer.state.fn == "fit"
        if metrics.get("top1", 100.0) < 100 and not (fits and self.progress < 0.5):
            self._tell_of_one_answer(int(metrics["num_clips"]), int(metrics["num_answers"]))

    def _tell_of_one_answer(self, num_files: int, num_answers: int) -> None:
        if num_files > 1 and num_answers == 1 and not self._told:
            self._told = True
            self._warn(f"all {num_files} files get the same class")

    def check_losses(self) -> None:
        """Checks the losses since the last check; notes their mean for the end of training."""
        losses = [one.total for one in self._losses]
        super().check_losses()
        if losses:
            mean = torch.stack(losses).mean()
            self._first_and_last = (self._first_and_last or (mean, mean))[0], mean

    def on_train_end(self) -> None:
        """Checks the last losses, and warns if the loss of the run has not fallen."""
        super().on_train_end()
        if self._first_and_last is None or self.global_step < LEAST_STEPS:
            return
        first, last = map(float, self._first_and_last)
        if self.trainer.ckpt_path is None and last > LEAST_FALL * first:
            self._warn(f"the loss did not fall: {first:.3f} at first, {last:.3f} at the end")

    def _warn(self, finding: str) -> None:
        remedy = "train longer (--steps), try another --learning-rate, and check the labels"
        if not self.classifier.standardize:
            remedy = f"set model.init_args.model.classifier.standardize to true, {remedy}"
        if rank() == 0:
            logger.warning("%s: the classifier has hardly learned. Remedy: %s", finding, remedy)

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
        counts["num_answers"] = float(len(seen.logits.argmax(dim=1).unique()))
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
