"""Log of a few validation clips with the captions that the model finds for them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vatt.batch import Batch
from vatt.errors import UserError
from vatt.evaluation.embedding_table import EmbeddingTable, concatenate, similarities
from vatt.pages.clip_table import COLUMNS, NUM_RETRIEVED, MediaRow, write_media
from vatt.preprocess.tokenizer import Tokenizer
from vatt.runs.loggers import RunWandb

NUM_CLIPS = 8  # the first of the set: the same each time, so that one sees them change
MAP_CLIPS = 64  # in a heat map
FOLDER = "media"  # in the run directory


class MediaLog(Callback):
    """Writes validation clips with the captions found for them, and heat maps of similarity.

    They are written to the run folder as `media/step-<row of metrics.csv>/`, with a page
    `index.html`, `clips.csv` and the pictures, and sent to W&B if the run uses it. The first
    process does this with its share of the validation set: after the first validation, every
    `every_n_validations`-th one after it, and the last one. Embeddings come from `validation_step`,
    which returns the fields of an `EmbeddingTable`, so nothing is encoded twice. If it returns
    none, only the clips are written.

    Args:
        every_n_validations: Number of validations from one log to the next.

    Raises:
        UserError: `every_n_validations` is not positive.
    """

    def __init__(self, every_n_validations: int) -> None:
        if every_n_validations < 1:
            raise UserError(
                f"run.media_every_n_validations must be at least 1, got {every_n_validations}: "
                "null is off"
            )
        self.every_n_validations = every_n_validations
        self._num_validations = 0
        self._due = False
        self._tables: list[EmbeddingTable] = []
        self._captions: list[str | None] = []
        self._rows: list[MediaRow] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether this validation is logged."""
        self._tables, self._captions, self._rows = [], [], []
        if trainer.sanity_checking:
            self._due = False
            return
        turn = self._num_validations % self.every_n_validations == 0
        self._due = trainer.is_global_zero and (turn or trainer.should_stop)
        self._num_validations += 1

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the embeddings of all clips, and the first clips themselves."""
        if not self._due or not isinstance(batch, Batch):
            return
        if isinstance(outputs, Mapping):
            self._tables.append(EmbeddingTable(**outputs))
        tokenizer = getattr(cast(Any, trainer).datamodule, "run_tokenizer", None)
        captions = _first_captions(batch, tokenizer)
        for row in range(min(len(batch), NUM_CLIPS - len(self._rows))):
            self._rows.append(_media_row(batch, row, captions[row]))
        self._captions += captions

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the pages and sends them."""
        if not self._due or not self._rows:
            return
        rows, maps = self._rows, {}
        if self._tables:
            table = concatenate(self._tables)
            rows = with_found(rows, table, self._captions)
            maps = similarity_maps(table.select(range(min(len(table), MAP_CLIPS))))
        step = max(trainer.global_step - 1, 0)  # the row in which this validation is logged
        folder = Path(trainer.default_root_dir) / FOLDER / f"step-{step:06d}"
        is_new = not folder.exists()  # a resumed run may come here again
        config = cast(Any, pl_module).network.config
        cells, pictures = write_media(
            folder,
            rows,
            maps,
            frame_rate=config.video.frame_rate,
            sample_rate=config.audio.sample_rate,
        )
        for logger in trainer.loggers:
            if isinstance(logger, RunWandb) and is_new:
                logger.log_media(COLUMNS, cells, pictures, step)
        self._tables, self._captions, self._rows = [], [], []


def similarity_maps(table: EmbeddingTable) -> dict[str, Tensor]:
    """Similarities of pictures with first captions, pictures with sounds, sounds with captions.

    Returns:
        float `[n, n]` by title, for the n clips that have both modalities; no entry if there are
        none, or if the model has no space for both.
    """
    maps = {}
    for direction, values in similarities(table).items():
        asked, sought = direction.split("_to_")
        both = values.diagonal().isfinite()
        maps[f"{sought} x {asked}"] = values[both][:, both].T
    return maps


def with_found(
    rows: list[MediaRow], table: EmbeddingTable, captions: list[str | None]
) -> list[MediaRow]:
    """Rows with the captions found for their pictures, among the first captions of all clips."""
    texts, has_text = table.first_texts()
    if table.video_vt is None or texts is None or not has_text.any():
        return rows
    candidates = has_text.nonzero()[:, 0]
    found = []
    for number, row in enumerate(rows):
        if not table.video_mask[number]:
            found.append(row)
            continue
        scores = texts[candidates] @ table.video_vt[number]
        best = scores.topk(min(NUM_RETRIEVED, len(candidates)))
        names = [captions[int(candidates[i])] or "" for i in best.indices]
        own = scores[candidates == number]  # not computed anew: it would differ in the last digit
        place = 1 + int((scores > own).sum()) if has_text[number] else None
        pairs = tuple(zip(names, best.values.tolist(), strict=True))
        found.append(replace(row, found=pairs, place=place))
    return found


def _first_captions(batch: Batch, tokenizer: Any) -> list[str | None]:
    """First caption of each clip as words, or as ids if no tokenizer is known."""
    if batch.text is None or batch.text_mask is None:
        return [None] * len(batch)
    text, mask = batch.text.cpu(), batch.text_mask.cpu()
    first = text[torch.arange(len(batch)), mask.int().argmax(dim=1)]
    if isinstance(tokenizer, Tokenizer):
        words = tokenizer.decode(first)
    else:
        words = [" ".join(str(index) for index in row if index) for row in first.tolist()]
    return [one if has else None for one, has in zip(words, mask.any(dim=1).tolist(), strict=True)]


def _media_row(batch: Batch, row: int, caption: str | None) -> MediaRow:
    """Clip on the CPU, with the modalities that it has."""
    frames = sound = None
    if batch.video is not None and batch.video_mask is not None and batch.video_mask[row]:
        frames = batch.video[row].cpu()
        if frames.dtype != torch.uint8:  # in [-1, 1]
            frames = ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    if batch.audio is not None and batch.audio_mask is not None and batch.audio_mask[row]:
        sound = batch.audio[row].cpu()
    key = batch.keys[row] if batch.keys else str(row)
    return MediaRow(key=key, frames=frames, sound=sound, caption=caption)
