"""`FeatureExtractor`, which encodes video, audio and text as vectors.

`N` is the number of sources, or of windows of one file; the shape legend is in `vatt.batch`.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.spaces import Space, spaces_of
from vatt.errors import MediaError, UserError
from vatt.features.embedder import Embedder, Form
from vatt.features.files import Features, WindowTable
from vatt.models.checkpoint import TOKENIZER, load_model, tokenizer_of
from vatt.models.hub import model_path
from vatt.network.model import VATT
from vatt.preprocess.arrays import (
    Source,
    audio_media,
    clip_of_pictures,
    each_source,
    name_of,
    read_duration,
    video_media,
)
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.windows import WindowPlan, plan_windows
from vatt.system.progress import progress_bar

NUM_WINDOWS = 4  # evenly spread, as the official retrieval takes them
MOST_AXES = {"video": 4, "audio": 2, "text": 0}  # of one array; more are a batch
OnError = Literal["raise", "skip"]


class EmptyTextError(UserError):
    """Text without any word to encode."""


class FeatureExtractor:
    """Encodes videos, sounds and texts as vectors.

    A source gives the same vector (to 1e-5 in float32) alone, in any batch and in any order.

    Args:
        model: Model, which is moved to the device and set to evaluation mode.
        tokenizer: Tokenizer that the model was trained with. None: texts cannot be encoded.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights and heads stay float32. "auto": bfloat16
            on CUDA, else float32.

    Raises:
        UserError: the device or dtype does not exist, or the tokenizer belongs to another model.

    Example:
        >>> fx = vatt.FeatureExtractor.from_pretrained("runs/demo/model")
        >>> video = fx.encode_video(["dog.mp4", "cat.mp4"])  # float32 [2, D], unit length
        >>> cosines = fx.similarity(text="a dog barks", video=["dog.mp4", "cat.mp4"])  # [1, 2]
    """

    def __init__(
        self,
        model: VATT,
        tokenizer: Tokenizer | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.embedder = Embedder(model, device, dtype)
        self.model = self.embedder.model
        vocab_size = self.model.config.text.vocab_size
        if tokenizer is not None and tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size} word "
                "vectors: give the tokenizer that it was trained with"
            )
        self.tokenizer = tokenizer
        self._told_of_cut = False

    def __repr__(self) -> str:
        """Size, modalities, spaces and device."""
        config = self.model.config
        millions = sum(value.numel() for value in self.model.parameters()) / 1e6
        spaces = dict.fromkeys(space for name in config.modalities for space in self.spaces(name))
        return (
            f"FeatureExtractor({millions:.3g} M weights, {' + '.join(config.modalities)}, "
            f"spaces {', '.join(spaces) or 'none'}, {self.embedder.device})"
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
    ) -> Self:
        """Loads a model with its tokenizer; code that comes with a model is never run.

        Args:
            source: Model folder, checkpoint of `vatt fit`, or `org/name` on the Hugging Face Hub,
                which is downloaded once.
            device: "auto": CUDA, else MPS, else the CPU.
            dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
            revision: Branch, tag or commit on the Hub.

        Raises:
            CheckpointError: the model does not exist or cannot be read; the message says what to
                do.

        Example:
            >>> fx = vatt.FeatureExtractor.from_pretrained("runs/demo/checkpoints/last.ckpt")
        """
        path = model_path(source, revision)
        return cls(load_model(path), tokenizer_of(path), device=device, dtype=dtype)

    def spaces(self, modality: str) -> tuple[Space, ...]:
        """Common spaces of `video`, `audio` or `text`; empty for a model without a head."""
        return spaces_of(self.model.config, modality)

    def encode_video(
        self,
        sources: Source | Iterable[Source],
        *,
        space: Space | Literal["auto"] | None = "auto",
        frame_rate: float | None = None,
        num_windows: int = NUM_WINDOWS,
        return_tokens: bool = False,
        normalize: bool = True,
        batch_size: int = 8,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> Tensor:
        """Encodes videos and images, one vector each.

        Args:
            sources: One source or several (a list or a generator, which is read lazily): path,
                http(s) URL, bytes, binary file, uint8 array or tensor `[T, H, W, 3]`, or image
                `[H, W, 3]`. An image becomes a still video; an array `[N, T, H, W, 3]` is N videos;
                a list of pictures with a `frame_rate` is one video.
            space: `vt`, `va`, `joint`, or None: features of the backbone. "auto": `vt` if the model
                has it, else `va` or `joint`, else None.
            frame_rate: Frames per second of arrays.
            num_windows: Maximum number of windows of training length, evenly spread over the video.
                The vector is their mean. A video shorter than a window is padded.
            return_tokens: Whether to return the backbone's features of every token of the middle
                window instead.
            normalize: Whether to scale vectors to unit length, after the mean. Tokens are never
                scaled.
            batch_size: Windows per batch.
            on_error: "raise", or "skip": an unreadable source gives a row of NaN and a warning.
            show_progress: Whether to show a progress bar.

        Returns:
            float32 `[N, D]` on the CPU; tokens `[N, 1 + L, D]`, AGG first.

        Raises:
            MediaError: a source cannot be read.
            UserError: there is no source, an array is invalid, or the model lacks the space.

        Example:
            >>> fx.encode_video(["dog.mp4", "cat.mp4"])  # [2, D]
            >>> fx.encode_video(frames, frame_rate=25)  # of uint8 [T, H, W, 3]: [1, D]
        """
        form = self.embedder.form("video", space, return_tokens, normalize)
        sources = clip_of_pictures(sources, frame_rate)
        return self._encode(
            form, sources, frame_rate, num_windows, batch_size, on_error, show_progress
        )

    def encode_audio(
        self,
        sources: Source | Iterable[Source],
        *,
        space: Space | Literal["auto"] | None = "auto",
        sample_rate: int | None = None,
        num_windows: int = NUM_WINDOWS,
        return_tokens: bool = False,
        normalize: bool = True,
        batch_size: int = 8,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> Tensor:
        """Encodes sounds and sound tracks of videos, one vector each.

        Args:
            sources: One source or several (a list or a generator, which is read lazily): path,
                http(s) URL, bytes, binary file, or float array or tensor `[S]` or `[channels, S]`
                in [-1, 1], or a pair of it and its sample rate. An array `[N, channels, S]` is N
                sounds.
            space: `va`, `vt`, `joint`, or None: features of the backbone. "auto": `va` or `joint`.
                Use `vt` to compare with text; audio enters it through the last step of the video
                head.
            sample_rate: Sample rate of arrays in Hz.
            num_windows: Maximum number of windows of training length, evenly spread over the sound.
                The vector is their mean. A sound shorter than a window is padded.
            return_tokens: Whether to return the backbone's features of every token of the middle
                window instead.
            normalize: Whether to scale vectors to unit length, after the mean. Tokens are never
                scaled.
            batch_size: Windows per batch.
            on_error: "raise", or "skip": an unreadable source gives a row of NaN and a warning.
            show_progress: Whether to show a progress bar.

        Returns:
            float32 `[N, D]` on the CPU; tokens `[N, 1 + L, D]`, AGG first.

        Raises:
            MediaError: a source cannot be read, has no sound, or holds NaN.
            UserError: there is no source, an array is invalid, or the model lacks the space.

        Example:
            >>> fx.encode_audio("dog.mp4", space="vt")  # [1, D], to compare with text
            >>> fx.encode_audio(waveform, sample_rate=16_000)  # of float [S]: [1, D]
        """
        form = self.embedder.form("audio", space, return_tokens, normalize)
        return self._encode(
            form, sources, sample_rate, num_windows, batch_size, on_error, show_progress
        )

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        space: Space | Literal["auto"] | None = "auto",
        return_tokens: bool = False,
        normalize: bool = True,
        batch_size: int = 64,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> Tensor:
        """Encodes texts, one vector each; too long texts are cut with a warning.

        Args:
            texts: One text or several (a list or a generator, which is read lazily).
            space: `vt`, `joint`, or None: features of the backbone. "auto": `vt` or `joint`.
            return_tokens: Whether to return the backbone's features of every word instead; padding
                is zeros.
            normalize: Whether to scale vectors to unit length. Tokens are never scaled.
            batch_size: Texts per batch.
            on_error: "raise", or "skip": a text without words gives a row of NaN and a warning.
            show_progress: Whether to show a progress bar.

        Returns:
            float32 `[N, D]` on the CPU; tokens `[N, 1 + J, D]`, AGG first (the linear tower has no
            AGG).

        Raises:
            UserError: there is no text, a text has no words, there is no tokenizer, or the model
                lacks the space.

        Example:
            >>> fx.encode_text(["a dog barks", "a cat sleeps"])  # [2, D]
        """
        form = self.embedder.form("text", space, return_tokens, normalize)
        return self._encode(form, texts, None, 1, batch_size, on_error, show_progress)

    def _encode(
        self,
        form: Form,
        sources: Any,
        rate: float | None,
        num_windows: int,
        batch_size: int,
        on_error: OnError,
        show_progress: bool,
    ) -> Tensor:
        """Encodes sources of one modality; see the public methods. `rate` is the rate of arrays."""
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        modality = form.modality
        read: Callable[[Any], Iterable[Tensor]] = self._read_text
        if modality != "text":
            plan = plan_windows(self.model.config, [modality])
            count = 1 if form.tokens else num_windows
            read = partial(_read_windows, modality=modality, rate=rate, plan=plan, count=count)
        each = each_source(sources, MOST_AXES[modality])
        failed: list[bool] = []  # by source
        each = progress_bar(each, "encode", unit=modality, show=show_progress)
        rows = _rows(each, read, on_error, failed)
        sums: dict[int, Tensor] = {}
        counts: Counter[int] = Counter()
        raw_form = replace(form, normalize=False)
        while batch := list(islice(rows, batch_size)):  # across sources
            numbers, inputs = zip(*batch, strict=True)
            vectors = self.embedder.embed(torch.stack(inputs), [raw_form])[0]
            for number, vector in zip(numbers, vectors, strict=True):
                sums[number] = sums.get(number, 0) + vector
            counts.update(numbers)
        if not failed:
            raise UserError(f"nothing to encode: no {modality} was given")
        table = torch.full((len(failed), *self.embedder.shape(form)), torch.nan)
        for number in (number for number in sums if not failed[number]):
            mean = sums[number] / counts[number]
            unit = form.normalize and not form.tokens
            table[number] = F.normalize(mean, dim=-1) if unit else mean
        return table

    def _read_text(self, text: str) -> list[Tensor]:
        """The ids of a text, int64 `[J]`."""
        if self.tokenizer is None:
            raise UserError(
                f"this model came without a {TOKENIZER}, which says what its word ids stand for: "
                "put the one it was trained with into its folder (`vatt tokenizer` makes one)"
            )
        if not isinstance(text, str):
            raise TypeError(f"texts are str, got {type(text).__name__}")
        max_words = self.model.config.text.max_words
        ids = self.tokenizer.encode([text], max_words + 1)[0]
        if not bool(ids.any()):
            raise EmptyTextError(f"text {text[:60]!r} holds no word: leave it out")
        if ids[max_words] != 0 and not self._told_of_cut:
            self._told_of_cut = True
            warnings.warn(
                f"the model reads {max_words} words, longer texts are cut, first {text[:60]!r}",
                stacklevel=5,  # the caller of encode_text or similarity
            )
        return [ids[:max_words]]

    def similarity(
        self,
        *,
        text: str | Iterable[str] | None = None,
        audio: Source | Iterable[Source] | None = None,
        video: Source | Iterable[Source] | None = None,
        frame_rate: float | None = None,
        sample_rate: int | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> Tensor:
        """Compares two modalities by cosine in the space that they share.

        Args:
            text: One text or several.
            audio: One sound or several: paths, URLs, bytes, files or float arrays `[S]`.
            video: One video or several: paths, URLs, bytes, files or uint8 arrays `[T, H, W, 3]`.
            frame_rate: Frames per second of video arrays.
            sample_rate: Sample rate of audio arrays in Hz.
            batch_size: Windows or texts per batch.
            on_error: "raise", or "skip": cosines of unreadable sources are -inf.
            show_progress: Whether to show progress bars.

        Returns:
            float32 `[rows, columns]` in [-1, 1]. Rows are texts, or sounds if no text is given;
            columns are videos, or sounds if no video is given.

        Raises:
            UserError: not exactly two modalities are given, or they share no space.
            MediaError: a source cannot be read.

        Example:
            >>> fx.similarity(text=["a dog barks"], video=["dog.mp4", "cat.mp4"])  # [1, 2]
        """
        sources = {"text": text, "audio": audio, "video": video}
        names = [name for name, source in sources.items() if source is not None]
        if len(names) != 2:
            raise UserError(
                "similarity compares two of text, audio and video, got "
                f"{' and '.join(names) or 'none'}"
            )
        space = self.embedder.shared_space(*names)
        rates = {"text": None, "audio": sample_rate, "video": frame_rate}
        vectors = []
        for name in names:
            form, rate = Form(modality=name, space=space), rates[name]
            vectors.append(
                self._encode(
                    form, sources[name], rate, NUM_WINDOWS, batch_size, on_error, show_progress
                )
            )
        rows, columns = vectors
        return (rows @ columns.T).nan_to_num(nan=-torch.inf)

    def extract(
        self,
        source: Source,
        *,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        modalities: Sequence[str] | None = None,
        space: Space | Literal["all"] | None = "all",
        return_tokens: bool = False,
        normalize: bool = True,
        batch_size: int = 8,
        frame_rate: float | None = None,
        sample_rate: int | None = None,
        show_progress: bool = False,
    ) -> Features:
        """Encodes all windows of a file, at a constant hop.

        Args:
            source: Path, http(s) URL, bytes, binary file, pictures as uint8 `[T, H, W, 3]`,
                `[H, W, 3]` or a list of these with `frame_rate`, or, with `sample_rate`, sound as
                float `[S]` or `[channels, S]`.
            window_seconds: Length of a window, rounded to whole patches; positions are then
                interpolated. None: as in training.
            hop_seconds: Time from the start of one window to the next. None: the length of a
                window.
            modalities: `video`, `audio` or both. None: those of the model. Modalities that the file
                lacks are left out.
            space: A common space; "all": arrays `video_va`, `video_vt`, `audio_va`, … for all
                spaces; or None: features of the backbone.
            return_tokens: Whether to return `video_tokens` and `audio_tokens` of the backbone
                instead.
            normalize: Whether to scale vectors to unit length.
            batch_size: Windows per batch.
            frame_rate: Frames per second of an array of pictures.
            sample_rate: Hz of an array of sound.
            show_progress: Whether to show a progress bar.

        Returns:
            Arrays with one row per window, the times of the windows, and the share of each window
            that the file fills.

        Raises:
            MediaError: the file cannot be read, or has none of the modalities.
            UserError: a time is invalid, or the model lacks the space or modality.

        Example:
            >>> features = fx.extract("talk.mp4", hop_seconds=1.0)
            >>> features["video_vt"], features.start_seconds  # [N, D], [N]
        """
        is_sound = sample_rate is not None
        source = clip_of_pictures(source, frame_rate)
        if isinstance(source, list):
            raise TypeError("extract encodes one source: call it for each of a list")
        media = audio_media(source, sample_rate) if is_sound else video_media(source, frame_rate)
        if modalities is None and isinstance(source, Tensor | np.ndarray):
            modalities = ["audio" if is_sound else "video"]
        elif modalities is None:
            modalities = self.model.config.media_modalities
        forms = self.embedder.forms(modalities, space, return_tokens, normalize)
        plan = plan_windows(self.model.config, modalities, window_seconds, hop_seconds)
        table = WindowTable(plan, read_duration(media))
        total = len(table.starts)
        with progress_bar(None, "extract", total, unit="window", show=show_progress) as bar:
            for starts in table.batches(batch_size):
                clips = [plan.read(media, start) for start in starts]
                table.add(clips, self.embedder.embed_clips(clips, forms))
                bar.update(len(clips))
        return table.features({"source": name_of(source)})


def _read_windows(
    source: Source, *, modality: str, rate: float | None, plan: WindowPlan, count: int
) -> Iterator[Tensor]:
    media = video_media(source, rate) if modality == "video" else audio_media(source, rate)
    return plan.read_spread(media, modality, count)


def _rows(
    sources: Iterable[Any],
    read: Callable[[Any], Iterable[Tensor]],
    on_error: OnError,
    failed: list[bool],
) -> Iterator[tuple[int, Tensor]]:
    """Inputs of the model with the indices of their sources; reports failed sources."""
    for number, source in enumerate(sources):
        failed.append(False)
        try:
            yield from ((number, row) for row in read(source))
        except (MediaError, EmptyTextError) as error:
            if on_error == "raise":
                raise
            failed[number] = True
            warnings.warn(f"skipped: {error}", stacklevel=4)  # of FeatureExtractor.encode_…
