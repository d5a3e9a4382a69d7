"""Data of pre-training: a resumable stream of batches, and a retrieval set for validation."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.augment import augment_batch
from datamodules.streamed import StreamedData
from vatt.batch import Batch, MicroBatches
from vatt.config.augment import AugmentConfig
from vatt.config.geometry import MODALITIES, AudioConfig, TextConfig, VideoConfig
from vatt.data.cache import GIB, ClipCache, warm_up
from vatt.data.clips import Geometry
from vatt.data.loader import EvaluationLoader, PositionedLoader, StartMethod, share_of_batch
from vatt.data.order import GlobalOrder
from vatt.data.overlap import warning_of_overlap
from vatt.data.prefetch import ShardPrefetch
from vatt.data.run_tokenizer import trained_tokenizer, vocabulary_hash
from vatt.data.samples import ClipSamples, RetrievalSamples, count_captions
from vatt.errors import UserError
from vatt.open_models.tokenizer import PretrainedTokenizer, names_open_model
from vatt.preprocess.tokenizer import Tokenizer
from vatt.shards.places import find_tars, is_remote, local_or_remote
from vatt.shards.shard_set import ShardSet
from vatt.system.ranks import HANG_MINUTES

logger = logging.getLogger(__name__)

RECIPE = AugmentConfig()
MAX_VALIDATION_ROWS = 64  # by default: 2048 rows of the published size would take 93 GiB


@dataclass(eq=False, repr=False)
class PretrainData(StreamedData):
    """Clips with captions from tar shards.

    Args:
        train: Shard folder or address, or several. A list makes every record equally likely; a
            mapping folder → weight gives each folder its share of every batch. `{HOWTO100M: 1,
            AUDIOSET: 1}` is the published mixture.
        validation: Shard folder of the retrieval set. None: no validation.
        video: Geometry of video clips, linked from the model.
        audio: Geometry of audio clips, linked from the model.
        text: Geometry of captions, linked from the model.
        modalities: Modalities of the model, linked from it. Without text there is no tokenizer, and
            captions are not read.
        batch_size: Clips per step over all ranks; each rank reads batch_size / world size of them.
        micro_batch_size: Clips per micro-batch of a rank, linked from the model. None: no
            micro-batches.
        num_workers: Reader processes per rank, at most one per core; not started if the cache holds
            all clips.
        start_method: How reader processes start: `forkserver` is safe with threads and CUDA, `fork`
            is faster.
        tokenizer: Path of a `tokenizer.json`, or folder or hub id of an open model, whose tokenizer
            is used. None: a word-level tokenizer with at most
            `text.vocab_size` ids is trained on the training captions, and stored beside the shards
            of the first folder.
        num_candidates: Number of captions, nearest in time, in the bag of multi-instance NCE.
        captions_per_step: Number of captions drawn from the bag in each epoch. None: all.
        batches_per_epoch: Batches per nominal epoch. None: as many as the records of all folders
            fill. With weights each folder has epochs of its own: a small one comes more often.
        seed: Seed of the order and of all random draws.
        augment: Random changes of training clips.
        max_failure_rate: Share of unreadable files, in [0, 1], above which training stops;
            three are always tolerated.
        cache_gib: Memory for decoded clips per rank, in GiB; clips that do not fit are decoded
            every time. 0: no cache.
        cache_views: Number of cached views of each clip; epoch e uses view e % cache_views.
        validation_batch_size: Rows of a validation batch per rank. None: a micro-batch, or the
            share of a training batch, at most 64, so that all workers read, and GPUs have memory.
        max_validation_captions: Maximum number of captions per clip in the retrieval set.
        max_validation_clips: Number of records of the retrieval set to use, from the first. None:
            all.

    Raises:
        UserError: a setting is invalid; the message says what to change.
    """

    OTHER_VOCABULARY = (
        "the checkpoint was trained with another tokenizer: give data.tokenizer the "
        "tokenizer.json of its run"
    )

    train: str | list[str] | dict[str, float]
    validation: str | None = None
    _: KW_ONLY
    video: VideoConfig
    audio: AudioConfig
    text: TextConfig
    modalities: tuple[str, ...] = MODALITIES
    batch_size: int = 64
    micro_batch_size: int | None = None
    num_workers: int = 2
    start_method: StartMethod = "forkserver"
    tokenizer: str | None = None
    num_candidates: int = 5
    captions_per_step: int | None = None
    batches_per_epoch: int | None = None
    seed: int = 0
    augment: AugmentConfig = RECIPE
    max_failure_rate: float = 0.05
    cache_gib: float = 0.0
    cache_views: int = 1
    validation_batch_size: int | None = None
    max_validation_captions: int = 20
    max_validation_clips: int | None = None

    def __post_init__(self) -> None:
        """Refuses invalid settings before any file is opened."""
        super().__init__()
        named = [self.train] if isinstance(self.train, str) else self.train
        self.train_folders = [local_or_remote(folder) for folder in named]
        self.validation_folder = self.validation and local_or_remote(self.validation)
        self.geometry = Geometry(
            video=self.video,
            audio=self.audio,
            text=self.text,
            num_candidates=self.num_candidates,
        )
        self.cache_bytes = int(self.cache_gib * GIB)
        self.run_tokenizer: Tokenizer | None = None  # also None if the model has no text
        self.train_samples: ClipSamples | None = None
        self.validation_samples: RetrievalSamples | None = None
        self._train_sets: list[ShardSet] | None = None
        self._order: GlobalOrder | None = None
        drawn, clips = self.captions_per_step, self.max_validation_clips
        if not self.train_folders:
            raise UserError("data.train names no shard folder: give at least one")
        if drawn is not None and not 1 <= drawn <= self.num_candidates:
            raise UserError(
                f"data.captions_per_step ({drawn}) must be between 1 and "
                f"data.num_candidates ({self.num_candidates})"
            )
        if clips is not None and clips < 1:
            raise UserError(f"data.max_validation_clips must be at least 1, got {clips}")
        if self.cache_views < 1 or self.cache_bytes < 0:
            raise UserError(
                "data.cache_views must be at least 1 and data.cache_gib at least 0, got "
                f"{self.cache_views} and {self.cache_gib:g}"
            )
        self._log_mel = self.masked_log_mel(self.audio)

    def prepare_data(self) -> None:
        """Trains a tokenizer if none is given; Lightning calls this on one rank.

        Raises:
            ShardError: shards are missing; raised before the run folder is created.
        """
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        if fits:
            share_of_batch(self.batch_size, self.world_size, self.micro_batch_size)
        validation = [] if self.validation_folder is None else [self.validation_folder]
        for folder in [*self.train_folders, *validation] if fits else validation:
            find_tars(folder)
        self._take_tokenizer()

    def open(self, stage: str | None) -> None:
        """Opens the data of a stage, once."""
        self._take_tokenizer()
        opens_train = stage in (None, "fit") and self.train_samples is None
        if opens_train:
            self.train_samples = self._open_train(self.run_tokenizer)
        if self.validation_folder is not None and self.validation_samples is None:
            self.validation_samples = self._open_validation(
                self.validation_folder, self.run_tokenizer
            )
        if opens_train and self.rank == 0:
            self._warn_of_overlap()

    def warm_up_cache(self, num_workers: int = 2, show_progress: bool = True) -> None:
        """Fills the cache, so that training does not wait for decoding.

        Args:
            num_workers: Processes that read; 0: this process. Use all cores, because nothing else
                runs meanwhile.
            show_progress: Whether to show a progress bar.
        """
        self.open("fit")
        options: dict[str, Any] = {
            "num_workers": num_workers,
            "start_method": self.start_method,
            "show_progress": show_progress and self.rank == 0,
        }
        train, validation = self.train_samples, self.validation_samples
        if train is not None and train.cache is not None:
            warm_up(train.cache, train.read_entry, title="training clips", **options)
        if validation is not None and validation.cache is not None:
            warm_up(validation.cache, validation.__getitem__, title="validation clips", **options)

    def train_dataloader(self) -> PositionedLoader:
        """Loader of the stream, at the position of the loaded state or of the last such loader."""
        self.open("fit")
        assert self.train_samples is not None
        if self._order is None:  # one for all loaders: its fingerprint takes time
            sizes = [one.shard_sizes for one in self.train_samples.sets]
            weights = [*self.train.values()] if isinstance(self.train, Mapping) else None
            self._order = GlobalOrder(sizes, weights, self.seed)
        return self.stream(
            self.train_samples,
            self._order,
            micro_batch_size=self.micro_batch_size,
            num_workers=self._workers_for(self.train_samples.cache),
            announce=self._prefetch(self.train_samples, self._order),
        )

    def _prefetch(self, samples: ClipSamples, order: GlobalOrder) -> Callable[[int], None] | None:
        """Download of remote shards in advance, in one process per machine; None in the others."""
        is_first = self.trainer is None or self.trainer.local_rank == 0
        read = samples.cache is None or not samples.cache.complete
        safe = self.start_method != "fork"  # threads and locks do not survive it
        if is_first and read and safe and any(map(is_remote, self.train_folders)):
            return ShardPrefetch(samples.sets, order).reach
        return None

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Loader of the retrieval set, with every record once."""
        self.open("validate")
        if self.validation_samples is None:
            return []
        share = min(MAX_VALIDATION_ROWS, max(1, self.batch_size // self.world_size))
        return self.evaluation_loader(
            self.validation_samples,
            batch_size=self.validation_batch_size or self.micro_batch_size or share,
            num_workers=self._workers_for(self.validation_samples.cache),
        )

    def on_after_batch_transfer(
        self, batch: Batch | MicroBatches, dataloader_idx: int
    ) -> Batch | MicroBatches:
        """Augments training clips on the device, with random numbers from their seeds."""
        if self.trainer is None or not self.trainer.training:
            return batch
        change = partial(augment_batch, augment=self.augment, log_mel=self._log_mel)
        if isinstance(batch, MicroBatches):
            return dataclasses.replace(batch, change=change)
        return change(batch)

    def vocabulary(self) -> dict[str, Any]:
        """Hash of the tokenizer that makes the ids; None if the model has no text."""
        if self.run_tokenizer is not None:
            return {"tokenizer": vocabulary_hash(self.run_tokenizer)}
        return {} if "text" in self.modalities else {"tokenizer": None}

    def _workers_for(self, cache: ClipCache | None) -> int:
        """Number of workers; 0 if all clips are cached, as copies in this process are cheap."""
        return 0 if cache is not None and cache.complete else self.num_workers

    def _open_sets(self) -> list[ShardSet]:
        """The training sets, opened once: the tokenizer is looked up by them as well."""
        if self._train_sets is None:
            self._train_sets = [ShardSet(folder) for folder in self.train_folders]
        return self._train_sets

    def _open_train(self, tokenizer: Tokenizer | None) -> ClipSamples:
        sets = self._open_sets()
        num_entries = sum(len(one) for one in sets) * self.cache_views
        return ClipSamples(
            sets,
            tokenizer,
            self.geometry,
            seed=self.seed,
            augment=self.augment,
            captions_per_step=self.captions_per_step,
            max_failure_rate=self.max_failure_rate,
            cache=self._open_cache("training", num_entries, self.geometry),
            num_views=self.cache_views,
        )

    def _open_validation(self, folder: Path | str, tokenizer: Tokenizer | None) -> RetrievalSamples:
        shards = ShardSet(folder)
        num_captions = min(max(count_captions(shards), 1), self.max_validation_captions)
        geometry = dataclasses.replace(self.geometry, num_candidates=num_captions)
        num_clips = min(self.max_validation_clips or len(shards), len(shards))
        cache = self._open_cache("validation", num_clips, geometry)
        return RetrievalSamples(shards, tokenizer, geometry, cache, num_clips=num_clips)

    def _warn_of_overlap(self) -> None:
        validation = self.validation_samples
        if validation is None:
            return
        warning = warning_of_overlap(self._open_sets(), validation.shards, len(validation))
        if warning is not None:
            logger.warning("%s", warning)

    def _open_cache(self, title: str, num_entries: int, geometry: Geometry) -> ClipCache | None:
        """Cache within the part of the limit that other caches have left."""
        if self.cache_bytes == 0:
            return None
        train = self.train_samples and self.train_samples.cache
        used = train.num_bytes if train else 0
        cache = ClipCache(num_entries, geometry, self.cache_bytes - used)
        if cache.capacity < num_entries:
            logger.warning(
                "the cache holds %d of the %d %s clips, the others are decoded each time; "
                "for all of them set data.cache_gib to %.2f",
                cache.capacity,
                num_entries,
                title,
                (used + num_entries * cache.slot_bytes) / GIB + 0.01,
            )
        return cache if cache.capacity else None

    def _take_tokenizer(self) -> None:
        if self.run_tokenizer is None and "text" in self.modalities:
            self.run_tokenizer = self._load_tokenizer()

    def _load_tokenizer(self) -> Tokenizer:
        """The given tokenizer, or one trained on the captions."""
        most = self.text.vocab_size
        wait = 60 * HANG_MINUTES if self.world_size > 1 else None
        if self.tokenizer is not None and names_open_model(self.tokenizer):
            return self._checked(PretrainedTokenizer.from_source(self.tokenizer), self.tokenizer)
        path = self.tokenizer or trained_tokenizer(self._open_sets(), most, wait)
        return self._checked(Tokenizer.load(path), path)

    def _checked(self, tokenizer: Tokenizer, path: str | Path) -> Tokenizer:
        """The tokenizer, unless it has more ids than the model."""
        most = self.text.vocab_size
        if tokenizer.vocab_size > most:
            raise UserError(
                f"the tokenizer {path} has {tokenizer.vocab_size} ids, but the model's "
                f"text.vocab_size is {most}: set text.vocab_size to at least "
                f"{tokenizer.vocab_size}, or give another data.tokenizer"
            )
        return tokenizer
