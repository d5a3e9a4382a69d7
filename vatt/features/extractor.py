"""`FeatureExtractor`, which encodes video, audio and text as vectors.

`N` is the number of sources, or of windows of one file; the shape legend is in `vatt.batch`.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from numbers import Real
from typing import Any, Literal, Never, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.options import Backend
from vatt.encoders.encoder import BOTH, Encoder
from vatt.encoders.loading import load_encoder
from vatt.encoders.own import VATTEncoder
from vatt.errors import MediaError, UserError
from vatt.features.embedder import Embedder, Form, row_of
from vatt.features.files import Features, WindowTable
from vatt.features.spread import Spread
from vatt.preprocess.arrays import (
    Dubbed,
    Media,
    Source,
    audio_media,
    clip_of_pictures,
    each_source,
    is_one_source,
    is_pair,
    modality_of,
    name_of,
    read_duration,
    rewindable,
    video_media,
)
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.windows import WindowPlan, plan_windows
from vatt.system.progress import progress_bar

NUM_WINDOWS = 4  # evenly spread, as the official retrieval takes them
OnError = Literal["raise", "skip"]


class EmptyTextError(UserError):
    """Text without any word to encode."""


class FeatureExtractor:
    """Encodes videos, sounds and texts as vectors.

    A source gives the same vector (to 1e-5 in float32) alone, in any batch and in any order.

    Args:
        model: VATT, which is moved to the device and set to evaluation mode; or an encoder of any
            model, which brings its tokenizer, device and dtype.
        tokenizer: Tokenizer that a VATT was trained with. None: texts cannot be encoded.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights and heads stay float32. "auto": bfloat16
            on CUDA, else float32.

    Raises:
        TypeError: the model is a path, which `from_pretrained` loads.
        UserError: the device or dtype does not exist, or the tokenizer belongs to another model.

    Example:
        >>> fx = vatt.FeatureExtractor.from_pretrained("runs/demo/model")
        >>> video = fx.encode_video(["dog.mp4", "cat.mp4"])  # float32 [2, D], unit length
        >>> cosines = fx.similarity(text="a dog barks", video=["dog.mp4", "cat.mp4"])  # [1, 2]
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        if isinstance(model, str | os.PathLike):
            raise TypeError(
                "a FeatureExtractor is made of a model: FeatureExtractor.from_pretrained loads "
                f"that of {os.fspath(model)}"
            )
        if not isinstance(model, Encoder):
            model = VATTEncoder(model, tokenizer, device, dtype)
        self.encoder: Encoder = model
        self.embedder = Embedder(model)
        self._told_of_cut = self._told_of_spread = False

    def __repr__(self) -> str:
        """Size, modalities, spaces and device."""
        has = self.encoder.modalities
        millions = self.encoder.num_weights / 1e6
        spaces = dict.fromkeys(space for name in has for space in self.spaces(name))
        return (
            f"FeatureExtractor({millions:.3g} M weights, {' + '.join(has)}, "
            f"spaces {', '.join(spaces) or 'none'}, {self.device})"
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        backend: Backend = "torch",
    ) -> Self:
        """Loads a model of any kind with its tokenizer or processor.

        Args:
            source: Model folder, of vatt, transformers or sentence-transformers; checkpoint of
                `vatt fit`; or `org/name` on the Hugging Face Hub, which is downloaded once.
            device: "auto": CUDA, else MPS, else the CPU.
            dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
            revision: Branch, tag or commit on the Hub.
            trust_remote_code: Whether a model of sentence-transformers may run Python code that
                comes with it. Read that code first.
            backend: "torch"; or "onnx": onnxruntime runs the towers that `vatt export` wrote into
                the folder, in float32.

        Raises:
            CheckpointError: the model does not exist or cannot be read; the message says what to
                do.
            UserError: onnxruntime is not installed.

        Example:
            >>> fx = vatt.FeatureExtractor.from_pretrained("runs/demo/checkpoints/last.ckpt")
        """
        encoder = load_encoder(
            source,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            backend=backend,
        )
        return cls(encoder)

    @property
    def model(self) -> Any:
        """The network: a VATT, or the module of another library."""
        return self.encoder.model

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Tokenizer of a VATT; None if it is missing, or for models of others."""
        return getattr(self.encoder, "tokenizer", None)

    @property
    def device(self) -> torch.device:
        """Device of the model; results are on the CPU."""
        return self.encoder.device

    def to(self, device: str | torch.device) -> Self:
        """Moves the model to a device; "auto" precision becomes that of the device.

        Raises:
            UserError: there is no such device.

        Example:
            >>> fx.to("cuda").device
        """
        self.encoder.to(device)
        return self

    def spaces(self, modality: str) -> tuple[str, ...]:
        """Common spaces of a modality; empty for a model without a head or that modality.

        Args:
            modality: `video`, `audio`, `text`, or `video_audio`: both as one item.
        """
        return self.encoder.spaces(modality)

    def encode(
        self,
        inputs: Source | Iterable[Source],
        *,
        modality: Literal["video", "audio", "video_audio", "text"] | None = None,
        space: str | None = "auto",
        frame_rate: float | None = None,
        sample_rate: int | None = None,
        normalize: bool = True,
        batch_size: int = 8,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> Tensor:
        """Encodes texts, videos, sounds and images, in any mixture, into one space.

        All vectors of a model can be compared with each other, whatever they were made of. The
        methods for one modality have further options.

        Args:
            inputs: One input or several, which may be of several modalities: texts, and sources of
                `encode_video` and `encode_audio`. A str is a text unless it is a URL, or names a
                file or something with the extension of a media file. Of a video the picture counts.
                An array needs its `modality`, `frame_rate` or `sample_rate`.
            modality: Modality of all inputs: "audio" takes the sound of videos, "video_audio" both
                as one item, "text" takes every str as a text. None: each input's own.
            space: Common space, or None: features of the backbone, of one modality only. "auto":
                the space of all modalities of the model, or None if there is none.
            frame_rate: Frames per second of arrays of pictures.
            sample_rate: Sample rate of arrays of sound in Hz.
            normalize: Whether to scale vectors to unit length.
            batch_size: Windows or texts per batch.
            on_error: "raise", or "skip": an unreadable source gives a row of NaN and a warning.
            show_progress: Whether to show progress bars, one for each modality.

        Returns:
            float32 on the CPU: `[D]` for one input, `[N, D]` for a list.

        Raises:
            MediaError: a source cannot be read.
            UserError: there is no input, an array is invalid, or the inputs share no space.

        Example:
            >>> query = fx.encode("a dog barks")  # [D]
            >>> cosines = fx.encode(["dog.mp4", "bark.wav", "photo.png"]) @ query  # [3]
        """
        has = self.encoder
        if modality is not None:
            has.check_modality(modality)
        inputs = clip_of_pictures(inputs, frame_rate)
        is_array = isinstance(inputs, Tensor | np.ndarray)
        media = has.media_modalities
        kind = modality or (modality_of(inputs, media, frame_rate, sample_rate) if is_array else "")
        is_one = is_one_source(inputs, kind or "text")
        sources = list(each_source(inputs, kind or "video"))
        if modality is None:
            sources = [rewindable(one) if hasattr(one, "read") else one for one in sources]
        kinds = [modality or modality_of(one, media, frame_rate, sample_rate) for one in sources]
        if not kinds:
            raise UserError("nothing to encode: no input was given")
        chosen = dict.fromkeys(kinds)
        if space == "auto":
            shared = self.embedder.shared_spaces
            space = next(iter(shared(*has.modalities) or shared(*chosen)), None)
        if space is None and len(chosen) > 1:
            raise UserError(
                f"{' and '.join(chosen)} cannot be compared by features of the backbone: encode "
                "them one by one, or use a model with a common space"
            )
        rates = {"text": None, "audio": sample_rate, "video": frame_rate, BOTH: frame_rate}
        rows: dict[int, Tensor] = {}
        for name in chosen:
            places = [place for place, one in enumerate(kinds) if one == name]
            vectors = self._encode(
                self.embedder.form(name, space, return_tokens=False, normalize=normalize),
                [sources[place] for place in places],
                *(rates[name], NUM_WINDOWS, batch_size, on_error, show_progress),
            )
            rows.update(zip(places, vectors, strict=True))
        table = torch.stack([rows[place] for place in range(len(sources))])
        return table[0] if is_one else table

    def encode_video(
        self,
        sources: Source | Iterable[Source],
        *,
        space: str | None = "auto",
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
        space: str | None = "auto",
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

    def encode_video_audio(
        self,
        sources: Source | Iterable[Source],
        *,
        audio: Source | Iterable[Source] | None = None,
        space: str = "auto",
        frame_rate: float | None = None,
        sample_rate: int | None = None,
        num_windows: int = NUM_WINDOWS,
        normalize: bool = True,
        batch_size: int = 8,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> Tensor:
        """Encodes videos by picture and sound together, one vector each.

        A VATT adds the unit vectors of both in a space that they share; other models have a tower
        of their own for both.

        Args:
            sources: One video or several; see `encode_video`.
            audio: The sounds, one for each video, from elsewhere; see `encode_audio`. None: each
                video's own.
            space: A space of `spaces("video_audio")`. "auto": as in `encode_video`.
            frame_rate: Frames per second of arrays of pictures.
            sample_rate: Sample rate of arrays of sound in Hz.
            num_windows: Maximum number of windows, evenly spread over the video, whose mean is the
                vector. Windows without sound are left out.
            normalize: Whether to scale vectors to unit length, after the mean.
            batch_size: Windows per batch.
            on_error: "raise", or "skip": an unreadable source gives a row of NaN and a warning.
            show_progress: Whether to show a progress bar.

        Returns:
            float32 `[N, D]` on the CPU.

        Raises:
            MediaError: a source cannot be read, or lacks picture or sound.
            UserError: there is no source, or the model lacks the space or a modality.

        Example:
            >>> fx.encode_video_audio(["dog.mp4", "cat.mp4"])  # [2, D]
            >>> fx.encode_video_audio("dog.mp4", audio="bark.wav")  # [1, D]
        """
        form = self.embedder.form(BOTH, space, return_tokens=False, normalize=normalize)
        videos: Any = clip_of_pictures(sources, frame_rate)
        if audio is not None:
            videos = _pairs(each_source(videos, "video"), each_source(audio, "audio"))
        return self._encode(
            form, videos, frame_rate, num_windows, batch_size, on_error, show_progress, sample_rate
        )

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        space: str | None = "auto",
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
        sound_rate: float | None = None,
    ) -> Tensor:
        """Encodes sources of one modality; see the public methods.

        `rate` is the rate of arrays, `sound_rate` that of sounds beside videos.
        """
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        modality = form.modality
        rate_name = "sample_rate" if modality == "audio" else "frame_rate"
        _expect_numbers(**{rate_name: rate}, num_windows=num_windows, batch_size=batch_size)
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        read: Callable[[Any], Iterable[Any]] = self._read_text
        if modality != "text":
            plan = plan_windows(self.encoder, form.parts)
            count = 1 if form.tokens else num_windows
            read = partial(
                _read_windows, parts=form.parts, rates=(rate, sound_rate), plan=plan, count=count
            )
        each = each_source(sources, form.parts[0])
        failed: list[bool] = []  # by source
        each = progress_bar(each, "encode", unit=modality, show=show_progress)
        rows = _rows(each, read, on_error, failed)
        sums: dict[int, Tensor] = {}
        counts: Counter[int] = Counter()
        raw_form = replace(form, normalize=False)
        while batch := list(islice(rows, batch_size)):  # across sources
            numbers, inputs = zip(*batch, strict=True)
            vectors = self.embedder.embed(inputs, [raw_form])[0]
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
        if form.space is None and not form.tokens and not self._told_of_spread:
            spread = Spread().add(table)
            self._told_of_spread = spread.is_small
            if spread.is_small:
                warnings.warn(f"features of {modality} {spread}", stacklevel=3)
        return table

    def _read_text(self, text: str) -> list[str]:
        """The text, which has tokens; warns once of one that is cut."""
        if not isinstance(text, str):
            raise TypeError(f"texts are str, got {type(text).__name__}")
        most, count = self.encoder.max_tokens, self.encoder.count_tokens(text)
        if not count:
            raise EmptyTextError(f"text {text[:60]!r} holds no word: leave it out")
        if count > most and not self._told_of_cut:
            self._told_of_cut = True
            unit = self.encoder.token_name
            warnings.warn(
                f"the model reads {most} {unit}, longer texts are cut, first {text[:60]!r}",
                stacklevel=5,  # the caller of encode_text or similarity
            )
        return [text]

    def similarity(
        self,
        *unnamed: Never,
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
            unnamed: Nothing: sources are given by name.
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
            TypeError: the sources are not given by name.
            UserError: not exactly two modalities are given, or they share no space.
            MediaError: a source cannot be read.

        Example:
            >>> fx.similarity(text=["a dog barks"], video=["dog.mp4", "cat.mp4"])  # [1, 2]
        """
        if unnamed:
            raise TypeError(
                "similarity takes its two arguments by name: text=, audio= or video=, such as "
                'similarity(text=["a dog barks"], video=["dog.mp4"])'
            )
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
        modalities: str | Sequence[str] | None = None,
        space: str | None = "all",
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
                `[H, W, 3]` or a list of these with `frame_rate`, or, with `sample_rate` or in a
                pair with it, sound as float `[S]` or `[channels, S]`.
            window_seconds: Length of a window, rounded to whole patches; positions are then
                interpolated. None: as in training.
            hop_seconds: Time from the start of one window to the next. None: the length of a
                window.
            modalities: Some of `video`, `audio` and `video_audio` (both as one item). None:
                `video` and `audio`, as the model has them. Modalities that the file lacks are left
                out.
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
        _expect_numbers(
            window_seconds=window_seconds,
            hop_seconds=hop_seconds,
            batch_size=batch_size,
            frame_rate=frame_rate,
            sample_rate=sample_rate,
        )
        is_sound = sample_rate is not None or is_pair(source)
        source = clip_of_pictures(source, frame_rate)
        if isinstance(source, list):
            raise TypeError("extract encodes one source: call it for each of a list")
        media = audio_media(source, sample_rate) if is_sound else video_media(source, frame_rate)
        if modalities is None and (isinstance(source, Tensor | np.ndarray) or is_pair(source)):
            modalities = ["audio" if is_sound else "video"]
        elif modalities is None:
            modalities = self.encoder.media_modalities
        elif isinstance(modalities, str):
            modalities = [modalities]
        forms = self.embedder.forms(modalities, space, return_tokens, normalize)
        parts = dict.fromkeys(part for form in forms for part in form.parts)
        plan = plan_windows(self.encoder, parts, window_seconds, hop_seconds)
        table = WindowTable(plan, read_duration(media))
        total = len(table.starts)
        with progress_bar(None, "extract", total, unit="window", show=show_progress) as bar:
            for starts in table.batches(batch_size):
                clips = [plan.read(media, start) for start in starts]
                table.add(clips, self.embedder.embed_clips(clips, forms))
                bar.update(len(clips))
        return table.features({"source": name_of(source)})


def _expect_numbers(**values: Any) -> None:
    """Raises TypeError if a value is no number; None is left to the caller."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Real):
            raise TypeError(f"{name} is a number, got {type(value).__name__}")


@dataclass(frozen=True)
class _Pair:
    """A video, and the sound that belongs to it."""

    video: Source
    audio: Source


def _pairs(videos: Iterable[Any], sounds: Iterable[Any]) -> Iterator[_Pair]:
    for video, sound in zip_longest(videos, sounds):
        if video is None or sound is None:
            raise UserError("there must be as many sounds as videos: give one for each")
        yield _Pair(video, sound)


def _read_windows(
    source: Source | _Pair,
    *,
    parts: Sequence[str],
    rates: tuple[float | None, float | None],
    plan: WindowPlan,
    count: int,
) -> Iterator[Any]:
    rate, sound_rate = rates
    media: Media
    if isinstance(source, _Pair):
        picture, sound = video_media(source.video, rate), audio_media(source.audio, sound_rate)
        media = Dubbed(picture, sound)
    else:
        media = audio_media(source, rate) if parts == ("audio",) else video_media(source, rate)
    return (row_of(clip, parts) for clip in plan.read_spread(media, parts, count))


def _rows(
    sources: Iterable[Any],
    read: Callable[[Any], Iterable[Any]],
    on_error: OnError,
    failed: list[bool],
) -> Iterator[tuple[int, Any]]:
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
