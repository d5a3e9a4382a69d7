"""The report on data before and during a run: captions, failures, coverage."""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from vatt.models.checkpoint import TOKENIZER
from vatt.preprocess.tokenizer import Tokenizer
from vatt.system.machine import num_cores


class DataReport(Callback):
    """Prepares the data of a run and reports on it, if the data module supports this.

    It fills the cache before training, stores the tokenizer or the classes in the run folder, and
    logs `data/decode_failures`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fills the cache, so that training does not wait for decoding."""
        data = cast(Any, trainer).datamodule
        if getattr(data, "cache_bytes", 0):
            data.warm_up_cache(num_workers=num_cores(), show_progress=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores tokenizer or classes; the weights are useless with other ids or class indices."""
        if not trainer.is_global_zero:
            return
        data, folder = cast(Any, trainer).datamodule, Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = getattr(data, "run_tokenizer", None)
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(folder / TOKENIZER)
        if hasattr(data, "save_classes"):
            data.save_classes(folder)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Logs the number of failures so far."""
        failures = getattr(cast(Any, trainer).datamodule, "decode_failures", None)
        if failures is not None:
            pl_module.log("data/decode_failures", float(failures), batch_size=1)
