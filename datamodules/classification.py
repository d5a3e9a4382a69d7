"""Data of fine-tuning: a stream of labelled files for training, fixed views for validation."""

from dataclasses import KW_ONLY, dataclass
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
from vatt.data.labelled import ClassifierInput, LabelledClips, LabelledViews
from vatt.data.labelled_files import LabelledFiles, read_files
from vatt.data.loader import EvaluationLoader, PositionedLoader, StartMethod, share_of_batch
from vatt.data.order import GlobalOrder
from vatt.errors import UserError
from vatt.media.folder import find_media
from vatt.network.tokens import normalize_video
from vatt.preprocess.transforms import mixup
from vatt.sets.annotations import Annotation, Classes, Layout, read_classes
from vatt.system.csv_rows import write_rows

RECIPE = AugmentConfig(crop="area", audio_noise=0.0)  # as the official code in fine-tuning


@dataclass(eq=False, repr=False)
class ClassificationData(StreamedData):
    """Clips of labelled files: video, sound or images, depending on the model's classifier.

    Args:
        train: Annotation file; with the layout `folder`, a folder that has a sub-folder per class.
        validation: The same for validation. None: no validation; for ESC-50, the fold.
        layout: Format of the annotations (`vatt.sets.annotations`).
        media: Folder of the media; required for Kinetics and AudioSet. None: the usual place.
        validation_media: Folder of the media of `validation`. None: the same as `media`.
        classes: File that lists the classes in order. None: all classes of `train`, sorted.
        allow_missing: Whether to leave out and count missing files instead of stopping.
        fold: Fold of ESC-50 (1 to 5) that is used for validation and not for training.
        predict: Folder of media without labels, for `vatt predict`. None: as for validation.
        video: Geometry of video clips, linked from the model.
        audio: Geometry of audio clips, linked from the model.
        classifier: Classes and modality, linked from the model.
        batch_size: Clips per step over all ranks.
        num_workers: Reader processes per rank, at most one per core.
        start_method: How reader processes start: `forkserver` or `fork`.
        batches_per_epoch: Batches per nominal epoch. None: as many as the files give.
        seed: Seed of the order and of all random draws.
        augment: Random changes of training clips.
        mixup_alpha: Mixup: the share of each clip is drawn from Beta(alpha, alpha). None: no mixup.
        max_failure_rate: Share of unreadable files, in [0, 1], above which training stops;
            three are always tolerated.
        num_windows: Windows of each file in `validate`, `test` and `predict`.
        num_crops: Crops of each window, 1 or 3.
        fit_windows: Windows of each file in validations during training; fewer are faster.
        fit_crops: Crops of each window in validations during training.
        validation_batch_size: Files per evaluation batch and rank, each with all its views.

    Raises:
        UserError: a setting is invalid; the message says what to change.
    """

    OTHER_VOCABULARY = (
        "the checkpoint was trained with other classes, or in another order: give "
        "data.classes the classes.csv of its run"
    )

    train: str
    validation: str | None = None
    _: KW_ONLY
    layout: Layout = "csv"
    media: str | None = None
    validation_media: str | None = None
    classes: str | None = None
    allow_missing: bool = False
    fold: int | None = None
    predict: str | None = None
    video: VideoConfig
    audio: AudioConfig
    classifier: ClassifierConfig | None
    batch_size: int = 64
    num_workers: int = 2
    start_method: StartMethod = "forkserver"
    batches_per_epoch: int | None = None
    seed: int = 0
    augment: AugmentConfig = RECIPE
    mixup_alpha: float | None = None
    max_failure_rate: float = 0.05
    num_windows: int = 4
    num_crops: int = 3
    fit_windows: int = 1
    fit_crops: int = 1
    validation_batch_size: int = 1

    def __post_init__(self) -> None:
        """Refuses invalid settings before any file is opened."""
        super().__init__()
        if self.classifier is None:
            raise UserError("model.init_args.model.classifier is null: say what is classified")
        sees = self.classifier.modality == "video"
        self.classifier_input = ClassifierInput(
            video=self.video if sees else None,
            audio=None if sees else self.audio,
            num_classes=self.classifier.num_classes,
        )
        self.run_classes: Classes | None = None
        self.train_samples: LabelledClips | None = None
        self.validation_files: LabelledFiles | None = None
        if (self.layout == "esc50") != (self.fold is not None):
            raise UserError(
                "data.fold, from 1 to 5, says on which fold of ESC-50 to validate: give it with "
                "data.layout esc50, and nowhere else"
            )
        if self.fold is not None and (self.validation or not 1 <= self.fold <= 5):
            raise UserError(f"data.fold is {self.fold}: give one from 1 to 5, and no validation")
        for windows, crops in (
            (self.num_windows, self.num_crops),
            (self.fit_windows, self.fit_crops),
        ):
            if windows < 1 or crops not in (1, 3):
                raise UserError(
                    f"data needs at least 1 window and 1 or 3 crops, got {windows} and {crops}"
                )
        if self.classifier.standardize and self.batch_size < 2:
            raise UserError(
                "features of a single clip cannot be standardised: set data.batch_size to 2 or "
                "more, or model.init_args.model.classifier.standardize to false"
            )
        if self.validation_batch_size < 1:
            raise UserError("data.validation_batch_size must be at least 1")
        self._log_mel = self.masked_log_mel(self.classifier_input.audio)

    def prepare_data(self) -> None:
        """Reads the annotations before the run folder is created; on one rank.

        Raises:
            UserError: the annotations cannot be used, or have another number of classes.
        """
        stage = "fit" if self.trainer is None else self.trainer.state.fn
        if stage == "fit":
            share_of_batch(self.batch_size, self.world_size)
        self.open(stage)

    def open(self, stage: str | None) -> None:
        """Opens the data of a stage, once."""
        if self.run_classes is None:
            self.run_classes = self._read_classes()
        if stage in (None, "fit") and self.train_samples is None:
            self.train_samples = LabelledClips(
                self._read_files(self.train, self.media, trains=True),
                self.classifier_input,
                seed=self.seed,
                augment=self.augment,
                max_failure_rate=self.max_failure_rate,
            )
        source = self.train if self.fold is not None else self.validation
        needed = stage != "predict" or self.predict is None
        if source is not None and self.validation_files is None and needed:
            media = self.validation_media or self.media
            self.validation_files = self._read_files(source, media, trains=False)

    def train_dataloader(self) -> PositionedLoader:
        """Loader of the stream, at the position of the loaded state or of the last such loader."""
        self.open("fit")
        assert self.train_samples is not None
        order = GlobalOrder([np.array([len(self.train_samples)])], None, self.seed)
        return self.stream(self.train_samples, order, num_workers=self.num_workers)

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Loader of all validation files; fewer views during a fit (`fit_windows`, `fit_crops`)."""
        self.open("validate")
        if self.validation_files is None:
            return []
        fits = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._views_of(self.validation_files, fits=fits)

    def predict_dataloader(self) -> EvaluationLoader | list[Any]:
        """Loader of the folder to predict, or of the validation files."""
        if self.predict is None:
            return self.val_dataloader()
        folder = Path(self.predict)
        files = ((name, (), 0.0, np.inf) for name in find_media(folder))
        return self._views_of(LabelledFiles(folder, files))

    def _views_of(self, files: LabelledFiles, *, fits: bool = False) -> EvaluationLoader:
        views = LabelledViews(
            files,
            self.classifier_input,
            num_windows=self.fit_windows if fits else self.num_windows,
            num_crops=self.fit_crops if fits else self.num_crops,
        )
        return self.evaluation_loader(
            views, batch_size=self.validation_batch_size, num_workers=self.num_workers
        )

    def on_after_batch_transfer(self, batch: LabelledBatch, dataloader_idx: int) -> LabelledBatch:
        """Augments and mixes training clips on the device, with random numbers from their seeds."""
        if self.trainer is None or not self.trainer.training or batch.seeds is None:
            return batch
        changed = augment_batch(batch, self.augment, self._log_mel)
        assert isinstance(changed, LabelledBatch)
        return changed if self.mixup_alpha is None else mix(changed, self.mixup_alpha)

    def vocabulary(self) -> dict[str, Any]:
        """Classes in the order of their indices."""
        return {"classes": list(self.run_classes.labels)} if self.run_classes else {}

    def save_classes(self, folder: Path) -> None:
        """Writes the classes in order to `classes.csv`, which the setting `classes` accepts."""
        assert self.run_classes is not None
        pairs = zip(self.run_classes.labels, self.run_classes.names, strict=True)
        rows = [[number, *pair] for number, pair in enumerate(pairs)]
        write_rows(folder / "classes.csv", [["index", "mid", "display_name"], *rows])

    def _read_classes(self) -> Classes:
        assert self.classifier is not None
        path = None if self.classes is None else Path(self.classes)
        classes = read_classes(path, Path(self.train), self.layout)
        if len(classes) != self.classifier.num_classes:
            raise UserError(
                f"{path or self.train} has {len(classes)} classes, the model "
                f"{self.classifier.num_classes}: set model.init_args.model.classifier.num_classes "
                f"to {len(classes)}"
            )
        return classes

    def _read_files(self, path: str, media: str | None, *, trains: bool) -> LabelledFiles:
        assert self.run_classes is not None
        assert self.classifier is not None

        def takes(one: Annotation) -> bool:
            return self.fold is None or (one.fold != self.fold) == trains

        return read_files(
            Path(path),
            self.layout,
            self.run_classes,
            multi_label=self.classifier.multi_label,
            media=None if media is None else Path(media),
            allow_missing=self.allow_missing,
            takes=takes,
        )


def mix(batch: LabelledBatch, alpha: float) -> LabelledBatch:
    """Mixes each clip with another one of the batch, and their labels in the same proportion.

    Args:
        batch: Batch with seeds.
        alpha: The own share of a clip is drawn from Beta(alpha, alpha).

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
    return batch.with_inputs(**changed)
