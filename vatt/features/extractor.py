"""Vectors of media and texts: `FeatureExtractor`, everything between a file and a vector.

Here `N` is the number of sources, or of windows of one file; the shape legend is in `vatt.batch`.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vatt.config.spaces import Space
from vatt.errors import UserError
from vatt.features.embedder import Embedder
from vatt.features.encoding import EmptyTextError, Encoding, OnError, batched, windows_of
from vatt.features.files import Features, WindowTable
from vatt.models.checkpoint import TOKENIZER, load_model, tokenizer_of
from vatt.models.hub import model_path
from vatt.network.model import VATT
from vatt.preprocess.arrays import (
    Media,
    Source,
    audio_media,
    each_source,
    name_of,
    read_duration,
    video_media,
)
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.windows import plan_windows

NUM_WINDOWS = 4  # evenly spread, as official retrieval takes them


class FeatureExtractor:
    """Encodes videos, sounds and texts.

    The same source gives the same vector (to 1e-5 at float32), alone or in any batch or order.

    Args:
        model: Goes to the device, and into evaluation mode.
        tokenizer: What the ids of its words stand for; None: it takes no text.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: What the encoders multiply in; weights and heads stay float32. "auto": bfloat16 on
            CUDA, else float32.

    Raises:
        UserError: no such device or dtype, or a tokenizer of another model.
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

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
    ) -> Self:
        """Loads a model with its tokenizer; no code that comes with it is ever run.

        Args:
            source: Model folder, checkpoint of `vatt fit`, or `org/name` of the Hugging Face Hub,
                which is downloaded once.
            device: As of the class.
            dtype: As of the class.
            revision: Branch, tag or commit on the Hub.

        Raises:
            CheckpointError: there is no model, or it cannot be read; says what to do.
        """
        path = model_path(source, revision)
        return cls(load_model(path), tokenizer_of(path), device=device, dtype=dtype)

    def spaces(self, modality: str) -> tuple[Space, ...]:
        """The common spaces that a modality can be put into; none without a head."""
        return self.embedder.spaces(modality)

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
        """One vector for each video or image.

        Args:
            sources: One or several (a generator is read as it goes) of: path, http(s) URL, bytes,
                binary file, uint8 array or tensor `[T, H, W, 3]`, image `[H, W, 3]`. An image is a
                video that stands still; `[N, T, H, W, 3]` are N videos.
            space: `vt`, `va`, `joint`, or None: features of the backbone. "auto": `vt` if the model
                has it, else `va` or `joint`, else None.
            frame_rate: Of arrays, in frames per second.
            num_windows: The mean of so many windows of training length, evenly spread, stands for
                the whole; fewer see all of a short one. What is shorter than a window is padded.
            return_tokens: Instead: what the backbone makes of each token of the middle window.
            normalize: Whether vectors get unit length, after the mean. Tokens stay as they are.
            batch_size: Windows encoded at a time.
            on_error: "raise", or "skip": a source that cannot be read gives a row of NaN and a
                warning.
            show_progress: Whether to draw a bar.

        Returns:
            float32 `[N, D]` on the CPU; tokens `[N, 1 + L, D]`, AGG first.

        Raises:
            MediaError: a source cannot be read.
            UserError: no source, an array that is none, or a space that the model lacks.
        """
        form = self.embedder.form("video", space, return_tokens, normalize)
        encoding = Encoding(self.embedder, "video", form, batch_size, on_error, show_progress)
        plan = plan_windows(self.model.config, ["video"])
        count = 1 if return_tokens else num_windows

        def read(source: Source) -> Iterator[Tensor]:
            return windows_of(video_media(source, frame_rate), "video", plan, count)

        return encoding.run(each_source(sources, most_axes=4), read, _length_of(sources))

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
        """One vector for each sound, or sound track of a video.

        Args:
            sources: As of `encode_video`; arrays are float `[S]` or `[channels, S]` in [-1, 1].
            space: "auto": `va` or `joint`. `vt` compares with text: the video head's last step
                takes the sound there.
            sample_rate: Of arrays, in Hz.
            num_windows: As of `encode_video`.
            return_tokens: As of `encode_video`.
            normalize: As of `encode_video`.
            batch_size: As of `encode_video`.
            on_error: As of `encode_video`.
            show_progress: As of `encode_video`.

        Returns:
            float32 `[N, D]` on the CPU; tokens `[N, 1 + L, D]`, AGG first.

        Raises:
            MediaError: a source cannot be read, has no sound, or holds NaN.
            UserError: as of `encode_video`.
        """
        form = self.embedder.form("audio", space, return_tokens, normalize)
        encoding = Encoding(self.embedder, "audio", form, batch_size, on_error, show_progress)
        plan = plan_windows(self.model.config, ["audio"])
        count = 1 if return_tokens else num_windows

        def read(source: Source) -> Iterator[Tensor]:
            return windows_of(audio_media(source, sample_rate), "audio", plan, count)

        return encoding.run(each_source(sources, most_axes=2), read, _length_of(sources))

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
        """One vector for each text; what is longer than the model reads is cut, with a warning.

        Args:
            texts: One or several.
            space: "auto": `vt` or `joint`.
            return_tokens: Instead: what the backbone makes of each word; padding is zeros.
            normalize: As of `encode_video`.
            batch_size: Texts encoded at a time.
            on_error: "raise", or "skip": a text without words gives a row of NaN and a warning.
            show_progress: Whether to draw a bar.

        Returns:
            float32 `[N, D]` on the CPU; tokens `[N, 1 + J, D]`, AGG first (the linear tower has
            none).

        Raises:
            UserError: no text, one without words, no tokenizer, or a space that the model lacks.
        """
        form = self.embedder.form("text", space, return_tokens, normalize)
        encoding = Encoding(self.embedder, "text", form, batch_size, on_error, show_progress)
        each = [texts] if isinstance(texts, str) else texts
        return encoding.run(each, self._read_text, _length_of(each))

    def _read_text(self, text: str) -> Iterator[Tensor]:
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
                stacklevel=5,
            )
        yield ids[:max_words]

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
        """Cosines of two modalities in the space that they share.

        Args:
            text: As of `encode_text`.
            audio: As of `encode_audio`.
            video: As of `encode_video`.
            frame_rate: Of video arrays, in frames per second.
            sample_rate: Of audio arrays, in Hz.
            batch_size: Windows or texts encoded at a time.
            on_error: With "skip", what cannot be read is like nothing: its cosines are -inf.
            show_progress: Whether to draw bars.

        Returns:
            float32 `[rows, columns]` in [-1, 1]: rows are texts, or sounds where no text is given;
            columns are videos, or sounds where no video is given.

        Raises:
            UserError: not two modalities, or they share no space.
            MediaError: a source cannot be read.
        """
        given = {"text": text, "audio": audio, "video": video}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 2:
            raise UserError(
                "similarity compares two of text, audio and video, got "
                f"{' and '.join(names) or 'none'}"
            )
        space = self.embedder.shared_space(*names)
        rest: dict[str, Any] = {
            "space": space,
            "batch_size": batch_size,
            "on_error": on_error,
            "show_progress": show_progress,
        }
        rates: dict[str, dict[str, Any]] = {
            "audio": {"sample_rate": sample_rate},
            "video": {"frame_rate": frame_rate},
        }
        rows, columns = (
            getattr(self, f"encode_{name}")(given[name], **rest, **rates.get(name, {}))
            for name in names
        )
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
        """Vectors of windows that slide over a file, with their times.

        Args:
            source: As of `encode_video` or, with `sample_rate`, of `encode_audio`.
            window_seconds: None: as in training. Others are rounded to whole patches; positions are
                then interpolated.
            hop_seconds: From window to window; None: one follows the other.
            modalities: `video`, `audio`; None: those of the model. What the file lacks is left out.
            space: A common space, None: features of the backbone, or "all": arrays `video_va`,
                `video_vt`, `audio_va`, … for each that there is.
            return_tokens: Instead: `video_tokens` and `audio_tokens` of the backbone.
            normalize: Whether vectors get unit length.
            batch_size: Windows encoded at a time.
            frame_rate: Of an array of pictures, in frames per second.
            sample_rate: Of an array of sound, in Hz.
            show_progress: Whether to draw a bar.

        Raises:
            MediaError: the file cannot be read, or has nothing of what was asked for.
            UserError: times that are none, or a space or modality that the model lacks.
        """
        media, of_array = _media_of(source, frame_rate, sample_rate)
        if modalities is None:
            modalities = of_array or media_modalities(self.model)
        forms = self.embedder.forms(modalities, space, return_tokens, normalize)
        plan = plan_windows(self.model.config, modalities, window_seconds, hop_seconds)
        duration_seconds = read_duration(media)
        starts = plan.sliding_starts(duration_seconds)
        table = WindowTable(plan, duration_seconds)
        with tqdm(total=len(starts), disable=not show_progress, unit="window") as bar:
            for part in batched(starts, batch_size):
                clips = [plan.read(media, start) for start in part]
                table.add(clips, self.embedder.embed_clips(clips, forms))
                bar.update(len(part))
        return table.features({"source": name_of(source)})


def media_modalities(model: VATT) -> list[str]:
    """Those of a model that media have: `video`, `audio`."""
    return [name for name in model.config.modalities if name != "text"]


def _media_of(
    source: Source, frame_rate: float | None, sample_rate: int | None
) -> tuple[Media, list[str] | None]:
    """What to read windows from and, of an array, the modality that it is."""
    if not isinstance(source, Tensor | np.ndarray):
        return video_media(source, None), None
    if sample_rate is not None:
        return audio_media(source, sample_rate), ["audio"]
    return video_media(source, frame_rate), ["video"]


def _length_of(sources: Any) -> int | None:
    """How many sources there are, where that is known before; for the bar."""
    return len(sources) if isinstance(sources, list | tuple) else None
