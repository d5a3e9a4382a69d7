"""The data of fine-tuning: labelled media files as a stream, and fixed views of others."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.augment import augment_batch
from datamodules.streamed import StreamedData
from vatt.batch import LabelledBatch
from vatt.config.augment import AugmentConfig
from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.config.model import ClassifierConfig
from vatt.data.labelled import LabelledClips, LabelledViews, Sight
from vatt.data.labelled_files import LabelledFiles, read_files
from vatt.data.loader import PositionedLoader, RetrievalLoader, StartMethod, share_of_batch
from vatt.data.order import GlobalOrder
from vatt.errors import UserError
from vatt.media.folder import find_media
from vatt.network.log_mel import log_mel_of
from vatt.network.tokens import normalize_video
from vatt.preprocess.transforms import mixup
from vatt.sets.annotations import Annotation, Classes, Layout, read_classes
from vatt.system.files import write_atomically

RECIPE = AugmentConfig(crop="area", audio_noise=0.0)  # as the official code in fine-tuning


class ClassificationData(StreamedData):
    """Clips of labelled files: video, sound or images, as the model's classifier reads.

    Args:
        train: Annotation file, or for the layout `folder` a folder with one for each class.
        validation: The same for evaluation. None: no validation; of ESC-50 the fold.
        layout: Form of the annotations, see `vatt.sets.annotations`.
        media: Folder of the media. None: where they usually are; Kinetics and AudioSet need it.
        validation_media: The same for `validation`; None: as `media`.
        classes: File of the classes in their order; None: all of `train`, sorted.
        allow_missing: Whether files that are not there are left out and counted, not refused.
        fold: Of ESC-50 (1 to 5): what is left out of training, for validation.
        predict: Folder of media without labels, for `vatt predict`; None: as for validation.
        video: Geometry of the picture, linked from the model.
        audio: Geometry of the sound, linked from the model.
        classifier: What is classified, linked from the model.
        batch_size: Clips of a step over all ranks.
        num_workers: Processes per rank that read.
        start_method: How they start.
        batches_per_epoch: Length of the nominal epoch; None: as many batches as the files give.
        seed: Names the order and all draws.
        augment: Random changes of training clips.
        mixup_alpha: Mix each clip with another by a share of Beta(alpha, alpha); None: none is.
        max_failure_rate: Share of unreadable files above which training stops.
        num_windows: Windows of each file in `validate`, `test` and `predict`.
        num_crops: Crops of each window, 1 or 3.
        fit_windows: Windows in the validations during a fit, which need not take long.
        fit_crops: Crops in these.
        validation_batch_size: Files of an evaluation batch per rank, each with all its views.

    Raises:
        UserError: what cannot be used, and what to do.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        *,
        layout: Layout = "csv",
        media: str | None = None,
        validation_media: str | None = None,
        classes: str | None = None,
        allow_missing: bool = False,
        fold: int | None = None,
        predict: str | None = None,
        video: VideoConfig,
        audio: AudioConfig,
        classifier: ClassifierConfig | None,
        batch_size: int = 64,
        num_workers: int = 2,
        start_method: StartMethod = "forkserver",
        batches_per_epoch: int | None = None,
        seed: int = 0,
        augment: AugmentConfig = RECIPE,
        mixup_alpha: float | None = None,
        max_failure_rate: float = 0.05,
        num_windows: int = 4,
        num_crops: int = 3,
        fit_windows: int = 1,
        fit_crops: int = 1,
        validation_batch_size: int = 1,
    ) -> None:
        super().__init__()
        if classifier is None:
            raise UserError("model.init_args.model.classifier is null: say what is classified")
        self.train_path = Path(train)
        self.validation_path = None if validation is None else Path(validation)
        self.layout = layout
        self.media = None if media is None else Path(media)
        self.validation_media = self.media if validation_media is None else Path(validation_media)
        self.classes_path = None if classes is None else Path(classes)
        self.allow_missing = allow_missing
        self.fold = fold
        self.predict_folder = None if predict is None else Path(predict)
        self.classifier = classifier
        self.sight = _sight(classifier, video, audio)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.start_method = start_method
        self.batches_per_epoch = batches_per_epoch
        self.seed = seed
        self.augment = augment
        self.mixup_alpha = mixup_alpha
        self.max_failure_rate = max_failure_rate
        self.views = num_windows, num_crops
        self.fit_views = fit_windows, fit_crops
        self.validation_batch_size = validation_batch_size
        self.classes: Classes | None = None
        self.train_clips: LabelledClips | None = None
        self.validation_files: LabelledFiles | None = None
        self._check_settings(audio)
        self._log_mel = log_mel_of(audio) if augment.masks_spectrogram else None

    def _check_settings(self, audio: AudioConfig) -> None:
        """Refuses what cannot be used before any file is opened."""
        if (self.layout == "esc50") != (self.fold is not None):
            raise UserError(
                "data.fold, from 1 to 5, says on which fold of ESC-50 to validate: give it with "
                "data.layout esc50, and nowhere else"
            )
        if self.fold is not None and (self.validation_path or not 1 <= self.fold <= 5):
            raise UserError(f"data.fold is {self.fold}: give one from 1 to 5, and no validation")
        if self.augment.masks_spectrogram and (self.sight.audio is None or not audio.spectrogram):
            raise UserError(
                "data.augment has num_time_masks or num_mel_masks, but the model sees no "
                "spectrogram: set both to 0"
            )
        for windows, crops in (self.views, self.fit_views):
            if windows < 1 or crops not in (1, 3):
                raise UserError(
                    f"data needs at least 1 window and 1 or 3 crops, got {windows} and {crops}"
                )
        if self.validation_batch_size < 1:
            raise UserError("data.validation_batch_size must be at least 1")

    @property
    def decode_failures(self) -> int:
        """Training files that this process and its workers could not read as planned."""
        return 0 if self.train_clips is None else self.train_clips.counts.failures

    def prepare_data(self) -> None:
        """Reads the annotations before anybody makes a folder for the run; on one rank.

        Raises:
            UserError: annotations that cannot be used, or another number of classes.
        """
        stage = "fit" if self.trainer is None else self.trainer.state.fn
        if stage == "fit":
            share_of_batch(self.batch_size, self.world_size)
        self.open(stage)

    def open(self, stage: str | None) -> None:
        """Opens what a stage needs, once."""
        if self.classes is None:
            self.classes = self._read_classes()
        if stage in (None, "fit") and self.train_clips is None:
            self.train_clips = LabelledClips(
                self._read_files(self.train_path, self.media, trains=True),
                self.sight,
                seed=self.seed,
                augment=self.augment,
                max_failure_rate=self.max_failure_rate,
            )
        source = self.train_path if self.fold is not None else self.validation_path
        needed = stage != "predict" or self.predict_folder is None
        if source is not None and self.validation_files is None and needed:
            self.validation_files = self._read_files(source, self.validation_media, trains=False)

    def train_dataloader(self) -> PositionedLoader:
        """The stream, where the loaded state or the last such loader stands."""
        self.open("fit")
        assert self.train_clips is not None
        return self.stream(
            self.train_clips,
            GlobalOrder([np.array([len(self.train_clips)])], None, self.seed),
            batch_size=self.batch_size,
            batches_per_epoch=self.batches_per_epoch,
            num_workers=self.num_workers,
            start_method=self.start_method,
        )

    def val_dataloader(self) -> RetrievalLoader | list[Any]:
        """Every file once: in a fit one view of each or as set, else all of the protocol."""
        self.open("validate")
        if self.validation_files is None:
            return []
        fits = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._evaluation_loader(
            self.validation_files, self.fit_views if fits else self.views
        )

    def test_dataloader(self) -> RetrievalLoader | list[Any]:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> RetrievalLoader | list[Any]:
        """The folder to predict, or the same as for validation."""
        if self.predict_folder is None:
            return self.val_dataloader()
        names = find_media(self.predict_folder)
        spans = [(0.0, np.inf)] * len(names)
        files = LabelledFiles(self.predict_folder, names, [()] * len(names), spans)
        return self._evaluation_loader(files, self.views)

    def on_after_batch_transfer(self, batch: LabelledBatch, dataloader_idx: int) -> LabelledBatch:
        """Changes and mixes training clips, on the device, as their seeds say."""
        if self.trainer is None or not self.trainer.training or batch.seeds is None:
            return batch
        changed = augment_batch(batch, self.augment, self._log_mel)
        assert isinstance(changed, LabelledBatch)
        return changed if self.mixup_alpha is None else mix(changed, self.mixup_alpha)

    def state_dict(self) -> dict[str, Any]:
        """The position of the training stream, and what each class number means."""
        position = self.position
        if position is None or self.classes is None:
            return {}
        return {**position, "classes": list(self.classes.labels)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes there, now or when the loader is made.

        Raises:
            UserError: the state is that of a run with other classes.
        """
        theirs = state_dict.get("classes")
        if theirs and self.classes is not None and theirs != list(self.classes.labels):
            raise UserError(
                "the checkpoint was trained with other classes, or in another order: give "
                "data.classes the classes.csv of its run"
            )
        self.go_to(state_dict)

    def save_classes(self, folder: Path) -> None:
        """Keeps the classes in their order as `classes.csv`, which `classes` reads."""
        assert self.classes is not None
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["index", "mid", "display_name"])
        pairs = zip(self.classes.labels, self.classes.names, strict=True)
        writer.writerows([number, *pair] for number, pair in enumerate(pairs))
        write_atomically(folder / "classes.csv", text.getvalue().encode())

    def _read_classes(self) -> Classes:
        classes = read_classes(self.classes_path, self.train_path, self.layout)
        if len(classes) != self.classifier.num_classes:
            raise UserError(
                f"{self.classes_path or self.train_path} has {len(classes)} classes, the model "
                f"{self.classifier.num_classes}: set model.init_args.model.classifier.num_classes "
                f"to {len(classes)}"
            )
        return classes

    def _read_files(self, path: Path, media: Path | None, *, trains: bool) -> LabelledFiles:
        assert self.classes is not None

        def takes(one: Annotation) -> bool:
            return self.fold is None or (one.fold != self.fold) == trains

        return read_files(
            path,
            self.layout,
            self.classes,
            multi_label=self.classifier.multi_label,
            media=media,
            allow_missing=self.allow_missing,
            takes=takes,
        )

    def _evaluation_loader(self, files: LabelledFiles, views: tuple[int, int]) -> RetrievalLoader:
        return RetrievalLoader(
            LabelledViews(files, self.sight, num_windows=views[0], num_crops=views[1]),
            batch_size=self.validation_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=self.num_workers,
            start_method=self.start_method,
        )


def _sight(classifier: ClassifierConfig, video: VideoConfig, audio: AudioConfig) -> Sight:
    """What the classifier's tower sees of a file."""
    sees = classifier.modality == "video"
    return Sight(
        video=video if sees else None,
        audio=None if sees else audio,
        num_classes=classifier.num_classes,
    )


def mix(batch: LabelledBatch, alpha: float) -> LabelledBatch:
    """Mixes each clip with another of the batch, and its labels in the same proportion.

    Args:
        batch: With seeds, and float sound or pictures.
        alpha: A clip's share of itself is of Beta(alpha, alpha).

    Returns:
        A batch with the same rows.
    """
    assert batch.seeds is not None
    name = "audio" if batch.video is None else "video"
    inputs = getattr(batch, name)
    if inputs.dtype == torch.uint8:  # pictures whose colours were not changed
        inputs = normalize_video(inputs)
    mixed, labels = mixup(inputs, batch.labels, batch.seeds, alpha=alpha)
    changed: dict[str, Any] = {name: mixed, "labels": labels}
    return dataclasses.replace(batch, **changed)
