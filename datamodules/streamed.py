"""Common part of the data modules: a training stream with a position, shared by ranks."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from vatt.config.augment import AugmentConfig
from vatt.config.geometry import AudioConfig
from vatt.data.labelled import LabelledClips
from vatt.data.loader import EvaluationLoader, PositionedLoader, StartMethod, usable_workers
from vatt.data.order import GlobalOrder
from vatt.data.samples import ClipSamples
from vatt.errors import UserError
from vatt.network.log_mel import LogMel, log_mel_of


class StreamedData(LightningDataModule):
    """Data module with the position of a training stream; subclasses define the stream.

    Lightning loses the state of loaders that it requests before it reads the checkpoint, so the
    module stores the state. Subclasses are dataclasses with at least the settings below.
    """

    OTHER_VOCABULARY: ClassVar[str]  # the error for a checkpoint with another `vocabulary`

    batch_size: int
    batches_per_epoch: int | None
    start_method: StartMethod
    augment: AugmentConfig

    def __init__(self) -> None:
        super().__init__()
        self.train_samples: ClipSamples | LabelledClips | None = None
        self._loader: PositionedLoader | None = None
        self._state: dict[str, Any] | None = None

    def open(self, stage: str | None) -> None:
        """Opens the data of a stage, once."""
        raise NotImplementedError

    def vocabulary(self) -> dict[str, Any]:
        """Meaning of the stream's ids or labels, by name; empty before it is known."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Opens the data of a stage; a fit restarts the stream unless a state is loaded.

        Raises:
            UserError: the stage needs a validation set, and there is none.
        """
        if stage == "fit":
            self._close()
            self._loader = self._state = None
        self.open(stage)
        if stage is None or self.trainer is None:
            return
        if self.predict_dataloader() if stage == "predict" else self.val_dataloader():
            return
        if stage != "fit":
            raise UserError("data.validation is missing: give --val SHARDS")
        self.trainer.limit_val_batches = 0  # Lightning warns of empty lists of batches

    def teardown(self, stage: str | None = None) -> None:
        """Stops the reader processes; keeps the position for a later checkpoint."""
        if stage == "fit":
            self._close()

    def stream(
        self, samples: Dataset[Any], order: GlobalOrder, *, num_workers: int, **options: Any
    ) -> PositionedLoader:
        """Loader of this rank's share of a stream, at the loaded or last position.

        Args:
            samples: Data set that makes the batch of a list of references.
            order: Order of the samples.
            num_workers: Processes that read, at most one per core.
            options: Further options of `PositionedLoader`.
        """
        self._close()
        state = self._state if self._loader is None else self._loader.state_dict()
        self._loader = PositionedLoader(
            samples,
            order,
            batch_size=self.batch_size,
            batches_per_epoch=self.batches_per_epoch,
            start_method=self.start_method,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=usable_workers(num_workers),
            pin_memory=torch.cuda.is_available(),
            **options,
        )
        if state is not None:
            self._loader.load_state_dict(state)
        return self._loader

    def evaluation_loader(
        self, samples: Dataset[Any], *, batch_size: int, num_workers: int
    ) -> EvaluationLoader:
        """Loader of this rank's share of a set, with every item once."""
        return EvaluationLoader(
            samples,
            batch_size=batch_size,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=usable_workers(num_workers),
            start_method=self.start_method,
        )

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        """The same loader as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvaluationLoader | list[Any]:
        """The same loader as for validation."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream and its vocabulary; empty before the stream exists."""
        vocabulary = self.vocabulary()
        if self._loader is None or not vocabulary:
            return {}
        return {**self._loader.state_dict(), **vocabulary}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes at a position, now or when the stream is made; an empty state is the start.

        Raises:
            UserError: the state belongs to a run with another vocabulary.
        """
        for name, value in self.vocabulary().items():
            if value is not None and state_dict.get(name) not in (None, value):
                raise UserError(self.OTHER_VOCABULARY)
        self._state = state_dict or None
        if self._loader is not None and self._state is not None:
            self._loader.load_state_dict(self._state)

    @property
    def decode_failures(self) -> int:
        """Number of training files that this process and its workers could not read as planned."""
        return 0 if self.train_samples is None else self.train_samples.counts.num_failed

    def masked_log_mel(self, audio: AudioConfig | None) -> LogMel | None:
        """Spectrogram module for masking by `augment`; None if it masks nothing.

        Args:
            audio: Geometry of audio for the model. None: the model has no audio.

        Raises:
            UserError: there is no spectrogram to mask.
        """
        if not self.augment.masks_spectrogram:
            return None
        if audio is None or audio.spectrogram is None:
            raise UserError(
                "data.augment has num_time_masks or num_mel_masks, but the model sees no "
                "spectrogram: set both to 0, or for sound give model.audio a spectrogram"
            )
        return log_mel_of(audio)

    @property
    def rank(self) -> int:
        """Index of this process in the run."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Number of processes of the run."""
        return 1 if self.trainer is None else self.trainer.world_size

    def _close(self) -> None:
        if self._loader is not None:
            self._loader.close()
