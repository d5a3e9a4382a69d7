"""Models as those of the sentence-transformers library, and of the tools that take these.

`N` is the number of inputs, `D` the width of the space.

Example:
    >>> import vatt.sentence_transformers
    >>> model = vatt.sentence_transformers.load("runs/demo/model")
    >>> model.encode(["a dog barks", "dog.mp4", {"video": "dog.mp4", "audio": "bark.wav"}])
"""

import os
import warnings
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.encoders.encoder import BOTH, PARTS
from vatt.encoders.own import VATTEncoder
from vatt.encoders.transformers_loading import load_sentence_transformers
from vatt.errors import UserError
from vatt.features.extractor import NUM_WINDOWS, FeatureExtractor, OnError
from vatt.media.folder import MEDIA_EXTENSIONS
from vatt.models.checkpoint import save_model
from vatt.models.hub import model_path
from vatt.preprocess.arrays import is_pair, modality_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_LIBRARY = load_sentence_transformers()
_infer_modality = import_module("sentence_transformers.base.modality").infer_modality
InputModule: Any = import_module("sentence_transformers.base.modules").InputModule

# modalities by the names of the library; an image is a still video
NAMES = {"text": ("text",), "video": ("image", "video"), "audio": ("audio",)}
KINDS = {name: modality for modality, names in NAMES.items() for name in names}
OPTIONS = ("space", "num_windows", "on_error", "dtype", "torch_dtype")  # of model_kwargs
Part = tuple[str, Any, float | None]  # modality, source, frame rate of an array of pictures


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    space: str | None = "auto",
    num_windows: int = NUM_WINDOWS,
    on_error: OnError = "raise",
) -> "SentenceTransformer":
    """Loads a model as a `SentenceTransformer`; code that comes with a model is never run.

    Run folders, checkpoints and model folders without `modules.json` load, too. `save_pretrained`
    of the result writes a model folder that has one.

    Args:
        source: Model folder, run folder, checkpoint, or `org/name` on the Hugging Face Hub; also of
            others, as for `FeatureExtractor`.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
        revision: Branch, tag or commit on the Hub.
        space: See `VATTModule`.
        num_windows: See `VATTModule`.
        on_error: See `VATTModule`.

    Raises:
        UserError: sentence-transformers is not installed, or an option is invalid.
        CheckpointError: the model does not exist or cannot be read.

    Example:
        >>> model = vatt.sentence_transformers.load("runs/demo/model", device="cpu")
        >>> model.similarity(model.encode("a dog barks"), model.encode(["dog.mp4"]))  # [1, 1]
    """
    extractor = FeatureExtractor.from_pretrained(
        source, device=device, dtype=dtype, revision=revision
    )
    return as_sentence_transformer(
        extractor, space=space, num_windows=num_windows, on_error=on_error
    )


def as_sentence_transformer(extractor: FeatureExtractor, **options: Any) -> "SentenceTransformer":
    """The model of a feature extractor as a `SentenceTransformer`, which shares its weights.

    Args:
        extractor: Feature extractor.
        options: `space`, `num_windows` and `on_error` of `VATTModule`.
    """
    module = VATTModule(extractor, **options)
    return _LIBRARY.SentenceTransformer(modules=[module], device=str(extractor.device))


class VATTModule(InputModule):
    """Module of sentence-transformers that encodes text, sound, video and images.

    All vectors are unit vectors of one space, those of `FeatureExtractor`. Picture and sound in one
    input, as `{"video": …, "audio": …}`, get that of `encode_video_audio`. Any other input of
    several modalities gets the mean of their unit vectors, scaled to unit length.

    An input is a text; a path, URL, bytes or open file of media; an image of Pillow; an array or
    tensor, by its axes sound `[S]` or `[channels, S]`, an image `[H, W, 3]` or `[3, H, W]`, or a
    video `[T, …]` of these; sound as `{"array", "sampling_rate"}` and video as `{"array",
    "video_metadata": {"fps"}}`; or a dict of these by `text`, `image`, `video` and `audio`. A str
    is a text unless it names a media file that exists, or is a URL that ends like one. Arrays
    without a rate count as having that of the model, with a warning.

    A text without any word that the model knows becomes a vector of zeros, with a warning.

    Args:
        extractor: Feature extractor, whose model the module holds.
        space: A common space, or None: features of the backbone, of one modality only. "auto": the
            space of all modalities of the model; None if it has no space at all.
        num_windows: Maximum number of windows of each video and sound, as in `encode_video`.
        on_error: "raise", or "skip": an input with an unreadable file, or with nothing, becomes a
            vector of zeros, with a warning.

    Raises:
        UserError: the model lacks the space, or has none for all modalities.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        space: str | None = "auto",
        num_windows: int = NUM_WINDOWS,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.model = extractor.model
        self.tokenizer = extractor.tokenizer
        encoder = extractor.encoder
        spaces = {name: extractor.spaces(name) for name in (*encoder.modalities, *PARTS)}
        known = list(dict.fromkeys(one for names in spaces.values() for one in names))
        if space == "auto":
            shared = [s for s in known if all(s in spaces[name] for name in encoder.modalities)]
            if known and not shared:
                raise UserError(
                    f"this model has no space of all its modalities: choose one by space=, it has "
                    f"{', '.join(known)}"
                )
            space = next(iter(shared), None)
        if space is not None and space not in known:
            raise UserError(
                f"this model has no space {space!r}, it has {', '.join(known) or 'none'}"
            )
        self.space = space
        self._has = [n for n in spaces if space in spaces[n] or (space is None and n not in PARTS)]
        self.num_windows = num_windows
        self.on_error = on_error
        self._told_of_rate = False

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads the files of a model folder, as `SentenceTransformer` calls it.

        Args:
            model_name_or_path: Folder, or `org/name` on the Hub.
            subfolder: Folder in it.
            token: Token for the Hub.
            cache_folder: Folder of downloads.
            revision: Branch, tag or commit on the Hub.
            local_files_only: Whether to download nothing.
            model_kwargs: `space`, `num_windows` and `on_error`, and `dtype`, the precision of the
                encoders' products.
            kwargs: Not used.

        Raises:
            UserError: an option is unknown.
            CheckpointError: the model cannot be read.
        """
        options = dict(model_kwargs or {})
        if unknown := sorted(options.keys() - set(OPTIONS)):
            raise UserError(
                f"model_kwargs has {', '.join(unknown)}, which no model of vatt takes: they are "
                f"{', '.join(OPTIONS)}"
            )
        dtype = options.pop("torch_dtype", None) or "auto"
        dtype = options.pop("dtype", None) or dtype
        folder = model_path(
            model_name_or_path,
            revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=local_files_only,
        )
        extractor = FeatureExtractor.from_pretrained(folder / subfolder, device="cpu", dtype=dtype)
        return cls(extractor, **options)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes a model folder, as `vatt.save_model` does; options of loading are not stored.

        Raises:
            UserError: the model is one of others.
        """
        if not isinstance(self.extractor.encoder, VATTEncoder):
            raise UserError("a model of others is saved by its own library")
        save_model(self.model, output_path, self.tokenizer)

    def get_config_dict(self) -> dict[str, Any]:
        """Options of the module, for its representation."""
        return {name: getattr(self, name) for name in ("space", "num_windows", "on_error")}

    @property
    def modalities(self) -> list[str | tuple[str, ...]]:
        """Modalities by the names of the library.

        `message` makes it pass on batches of several modalities, and dicts of any of these.
        """
        names: list[str | tuple[str, ...]] = [n for n, name in KINDS.items() if name in self._has]
        both = [("audio", "video")] if BOTH in self._has else []
        return [*names, *both, "message"]

    @property
    def max_seq_length(self) -> int | None:
        """Number of tokens of a text that the model reads; None if it reads no text."""
        return self.extractor.encoder.max_tokens if "text" in self._has else None

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        if value != self.max_seq_length:
            raise UserError(
                f"max_seq_length of this model is {self.max_seq_length} and cannot be changed, got "
                f"{value}: leave it as it is"
            )

    def get_embedding_dimension(self) -> int | None:
        """Width of the vectors; None if it depends on the modality, as features' may."""
        widths = {self.extractor.encoder.width(name, self.space) for name in self._has}
        return widths.pop() if len(widths) == 1 else None

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The inputs and the prompt as they are: `forward` reads files, a few at a time."""
        return {"inputs": list(inputs), "prompt": prompt or ""}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Encodes a batch.

        Args:
            features: `inputs`, and the `prompt` that goes before their texts.
            kwargs: Not used.

        Returns:
            The features with `sentence_embedding`, float32 `[N, D]` on the device of the model.

        Raises:
            MediaError: a file cannot be read, unless `on_error` is "skip".
            UserError: an input is invalid or empty, or the model is to be trained.
            TypeError: an input is of a type that is not listed above.
        """
        if self.training and torch.is_grad_enabled():
            raise UserError("sentence-transformers cannot train models of vatt: use `vatt fit`")
        place = next(self.model.parameters())
        if place.dtype != torch.float32:
            raise UserError(
                f"weights of vatt stay float32, got {place.dtype}: give the precision of products "
                'as model_kwargs={"dtype": "bfloat16"}'
            )
        if place.device != self.extractor.device:  # the library has moved the model
            self.extractor.to(place.device)
        table = self._encode_inputs(features["inputs"], features["prompt"])
        return {**features, "sentence_embedding": table.to(place.device)}

    def _encode_inputs(self, inputs: Sequence[Any], prompt: str) -> Tensor:
        """Vectors of inputs of any modalities, float32 `[N, D]` on the CPU."""
        groups: dict[tuple[str, float | None], list[tuple[int, Any]]] = defaultdict(list)
        num_parts = []
        for number, one in enumerate(inputs):
            parts = self._sources(one, prompt)
            num_parts.append(len(parts))
            if not parts:
                self._tell_of_nothing(one)
            for modality, source, rate in parts:
                groups[modality, rate].append((number, source))
        modalities = {modality for modality, _ in groups}
        if self.space is None and len(modalities) > 1:
            raise UserError(
                f"{' and '.join(sorted(modalities))} cannot be compared by features of the "
                "backbone: encode them one by one, or use a model with a common space"
            )
        first = next(iter(modalities if self.space is None else ()), self._has[0])
        table = torch.zeros(len(inputs), self.extractor.encoder.width(first, self.space))
        for (modality, rate), members in groups.items():
            numbers, sources = zip(*members, strict=True)
            vectors = self._encode(modality, sources, rate, batch_size=len(inputs))
            table.index_add_(0, torch.tensor(numbers), vectors)
        several = torch.tensor(num_parts) > 1
        table[several] = F.normalize(table[several], dim=-1)
        return table.nan_to_num(nan=0.0)  # inputs with a file that was skipped

    def _sources(self, one: Any, prompt: str) -> list[Part]:
        """Sources of an input; one video with one sound are one of both."""
        named = list(_parts(one))
        kinds = [kind for kind, _ in named]
        parts = [self._part(kind, value, prompt) for kind, value in named]
        has_both = kinds.count("video") == kinds.count("audio") == 1
        if not has_both or self.space not in self.extractor.spaces(BOTH):
            return parts
        (_, video, rate), (_, sound, _) = (parts[kinds.index(name)] for name in PARTS[BOTH])
        others = (part for kind, part in zip(kinds, parts, strict=True) if kind not in PARTS[BOTH])
        return [(BOTH, (video, sound), rate), *others]

    def _tell_of_nothing(self, value: Any) -> None:
        message = f"the input {value!r:.60} holds nothing to encode"
        if self.on_error == "raise":
            raise UserError(f"{message}: leave it out")
        warnings.warn(f"skipped: {message}", stacklevel=2)

    def _encode(
        self, modality: str, sources: Sequence[Any], rate: float | None, *, batch_size: int
    ) -> Tensor:
        """Vectors of sources of one modality, float32 `[N, D]`; NaN for those that are skipped."""
        form: dict[str, Any] = {"space": self.space, "batch_size": batch_size}
        if modality == "text":
            vectors = self.extractor.encode_text(sources, on_error="skip", **form)
            return vectors.nan_to_num(nan=0.0)
        form |= {"num_windows": self.num_windows, "on_error": self.on_error}
        if modality == "audio":
            return self.extractor.encode_audio(sources, **form)
        if modality == "video":
            return self.extractor.encode_video(sources, frame_rate=rate, **form)
        videos, sounds = zip(*sources, strict=True)
        return self.extractor.encode_video_audio(videos, audio=sounds, frame_rate=rate, **form)

    def _part(self, kind: str, value: Any, prompt: str) -> Part:
        """A value as a source of `FeatureExtractor`.

        Args:
            kind: Name of a modality, or `media`, of which the file decides.
            value: The value.
            prompt: Words that go before texts.
        """
        if isinstance(value, Mapping) and {"bytes", "path"} <= {*value}:
            value = _file(value)
        if kind == "text":
            return "text", prompt + value if isinstance(value, str) else value, None
        if kind == "media":
            media = [n for n in self.extractor.encoder.media_modalities if n in self._has]
            return modality_of(value, media, None, None), value, None
        if kind == "audio":
            return "audio", self._sound(value), None
        return "video", *self._pictures(value, is_still=kind == "image")

    def _sound(self, value: Any) -> Any:
        """A sound: an array with its sample rate, or media as they are."""
        is_dict = isinstance(value, Mapping)
        array, rate = (value["array"], value["sampling_rate"]) if is_dict else (value, None)
        if not is_dict and not isinstance(array, np.ndarray | Tensor):
            return value
        if rate is None:
            assert self.extractor.encoder.audio is not None
            rate = self.extractor.encoder.audio.sample_rate
            self._warn_of_rate("sound", f"{rate} Hz", '"sampling_rate": …')
        return torch.as_tensor(array), int(rate)

    def _pictures(self, value: Any, *, is_still: bool) -> tuple[Any, float | None]:
        """An image or frames `[…, H, W, 3]` with the frame rate, or media as they are."""
        metadata = None
        if isinstance(value, Mapping):
            value, metadata = value["array"], value.get("video_metadata")
        array = _array(value)
        if not isinstance(array, np.ndarray | Tensor) or is_still or array.ndim == 3:
            return array, None
        rate = _fps(metadata)
        if rate is None:
            assert self.extractor.encoder.video is not None
            rate = self.extractor.encoder.video.frame_rate
            self._warn_of_rate("pictures", f"{rate:g} frames/s", '"video_metadata": {"fps": …}')
        return array, float(rate)

    def _warn_of_rate(self, what: str, rate: str, key: str) -> None:
        if not self._told_of_rate:
            self._told_of_rate = True
            warnings.warn(
                f"arrays of {what} without a rate count as {rate}, which the model reads: give "
                f'{{"array": …, {key}}}',
                stacklevel=2,
            )


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Values of an input by the name of their modality, or `media` if only the file shows it."""
    try:
        kind = _infer_modality(value)
    except (ValueError, TypeError) as error:  # bytes, paths, open files, files of `datasets`
        if isinstance(value, Mapping) and not {"bytes", "path"} <= {*value}:
            raise UserError(str(error)) from error
        kind = "media"
    if kind == "message":
        for message in value if isinstance(value, list) else [value]:
            yield from _parts_of_message(message["content"])
    elif isinstance(value, Mapping) and value.keys() <= KINDS.keys():
        for name, each in value.items():
            for one in _several(name, each):
                yield name, one
    elif isinstance(value, str) and (kind != "text" or _is_media_file(value)):
        yield "media", b64decode(value.partition(",")[2]) if value.startswith("data:") else value
    else:
        yield kind, value


def _parts_of_message(content: Any) -> Iterator[tuple[str, Any]]:
    """Values in the content of a chat message: a text, or entries such as `{"type", "text"}`."""
    for entry in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = entry.get("type")
        if kind not in KINDS:
            raise UserError(f"an entry of a message is of {', '.join(KINDS)}, got {kind!r}")
        yield kind, entry[kind]


def _several(name: str, value: Any) -> Iterator[Any]:
    """The values of a modality: one, those of a list, or none; images for `video` are frames."""
    is_list = isinstance(value, list | tuple) and not is_pair(value)
    if is_list and not (name == "video" and all(_is_picture(one) for one in value)):
        yield from value
    elif value is not None:
        yield value


def _is_picture(value: Any) -> bool:
    return hasattr(value, "convert") or getattr(value, "ndim", 0) == 3


def _is_media_file(text: str) -> bool:
    """Whether a text is the path of a media file of our extensions, which are more."""
    if PurePosixPath(text).suffix[1:].lower() not in MEDIA_EXTENSIONS:
        return False
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name can be
        return False


def _array(value: Any) -> Any:
    """An image of Pillow, an array or a list of frames as an array `[…, H, W, 3]`."""
    if hasattr(value, "convert"):
        return np.array(value.convert("RGB"))
    if isinstance(value, list | tuple):
        return np.stack([np.asarray(_array(one)) for one in value])
    if isinstance(value, np.ndarray | Tensor) and value.ndim > 2 and value.shape[-1] != 3:
        return torch.as_tensor(value).movedim(-3, -1)
    return value


def _fps(metadata: Any) -> float | None:
    """Frames per second in the metadata of a video: a dict, or an object of transformers."""
    return metadata.get("fps") if isinstance(metadata, Mapping) else getattr(metadata, "fps", None)


def _file(value: Mapping[str, Any]) -> Any:
    """A file of `datasets`: its content, its path, or its content from where the path points."""
    if value["bytes"] is not None:
        return value["bytes"]
    if "://" not in value["path"]:
        return value["path"]
    import fsspec

    with fsspec.open(value["path"], "rb") as file:
        return file.read()
