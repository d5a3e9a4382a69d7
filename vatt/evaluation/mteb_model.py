"""Interface to the `mteb` library, for tasks with video, sound, images and text.

`N` is the number of rows of a task's data set, `D` the width of its space.
"""

import os
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vatt.errors import UserError
from vatt.features.extractor import NUM_WINDOWS, FeatureExtractor, OnError
from vatt.media.source import MediaSource
from vatt.models.checkpoint import weights_digest
from vatt.network.torchaudio_loading import load_torchaudio
from vatt.preprocess.arrays import audio_media
from vatt.system.extras import load_extra

if TYPE_CHECKING:
    from types import ModuleType

    from mteb.models.model_meta import ModelMeta
    from mteb.types import PromptType

BATCH_SIZE = 32  # mteb's own, of windows or texts
MODALITY_OF = {"video": "video", "image": "video", "audio": "audio", "text": "text"}  # by column
Matrix = NDArray[np.float32] | Tensor


@dataclass(eq=False, repr=False)
class MtebModel:
    """Model for `mteb.evaluate(model, tasks=…)`, which implements mteb's `EncoderProtocol`.

    All queries and documents of a task are encoded in the space that all its modalities share. With
    separate heads this is `vt` if the task has text (audio enters it through the last step of the
    video head), and `va` for pictures with sound. An image is a still video. A row with several
    modalities becomes the mean of their unit vectors, for which the model was not trained. A text
    without a known word becomes a vector of zeros, which matches nothing.

    Our reader reads the files at their own rates, before `datasets` decodes mteb's columns. Neither
    torchcodec nor torchvision is needed.

    Args:
        extractor: Feature extractor.
        name: Name for the results of mteb, `organisation/model`.
        space: `vt`, `va`, `joint`, or None: features of the backbone, for tasks of one modality.
            "auto": as described above; for a single modality as in `FeatureExtractor`.
        num_windows: Number of windows of each video and sound.
        on_error: "raise", or "skip": an unreadable file gets zeros and a warning.

    Raises:
        UserError: mteb is not installed, or the name has no `/`.
    """

    extractor: FeatureExtractor
    name: str
    _: KW_ONLY
    space: str | None = "auto"
    num_windows: int = NUM_WINDOWS
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        """Refuses a name that mteb would."""
        if "/" not in self.name:
            raise UserError(f"mteb names models organisation/model, got {self.name!r}")
        load_mteb()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a model with its tokenizer.

        Args:
            source: Model folder, `.ckpt` of a run, or `org/name` on the Hub.
            name: Name in mteb. None: the name on the Hub, or `vatt/` with the last two parts of the
                path.
            device: Device; "auto": a GPU if there is one.
            dtype: Precision; "auto": depends on the device.
            revision: Branch, tag or commit on the Hub.
            options: `space`, `num_windows` and `on_error`.

        Raises:
            UserError: mteb is not installed.
            CheckpointError: the model does not exist or cannot be read.
        """
        extractor = FeatureExtractor.from_pretrained(
            source, device=device, dtype=dtype, revision=revision
        )
        path = Path(source)
        if name is None:
            name = str(source)
            if path.exists():
                name = f"vatt/{'-'.join(path.absolute().parts[-2:]).strip('/')}"
        return cls(extractor, name, **options)

    @cached_property
    def mteb_model_meta(self) -> "ModelMeta":
        """Description of the model for mteb; the revision is the digest of the weights."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        model, modalities = self.extractor.model, self.modalities
        parameters = list(model.parameters())
        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": weights_digest(model),
                "n_parameters": sum(p.numel() for p in parameters),
                "memory_usage_mb": sum(p.numel() * p.element_size() for p in parameters) / 2**20,
                "max_tokens": model.config.text.max_words if "text" in modalities else None,
                "embed_dim": self._widths(),
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
                "modalities": modalities,
                "experiment_kwargs": self._experiment() or None,
            }
        )

    @property
    def modalities(self) -> list[str]:
        """Modalities of the model by mteb's names; a model with `video` also has `image`."""
        has = self.extractor.model.config.modalities
        return [column for column, modality in MODALITY_OF.items() if modality in has]

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: "PromptType | None" = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Encodes each row of a data set as a unit vector.

        Args:
            inputs: mteb's DataLoader; its `dataset` is read, in order.
            task_metadata: Description of the task, whose modalities determine the space.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used, since queries and documents share the space.
            kwargs: `batch_size` (windows or texts) and `show_progress_bar`; others are ignored.

        Returns:
            float32 `[N, D]`.

        Raises:
            MediaError: a file cannot be read, unless `on_error` is "skip".
            UserError: the task's modalities share no space in this model.
            TypeError: a column has a type that mteb does not document.
        """
        rows = _undecoded(inputs.dataset)
        columns = [column for column in rows.features if column in self.modalities]
        if not columns:
            raise UserError(
                f"nothing to encode: {task_metadata.name} has {', '.join(rows.features)}, "
                f"the model {', '.join(self.modalities)}"
            )
        space = self._space(task_metadata.modalities)
        total: Tensor | None = None
        for column in columns:
            vectors = self._encode_column(rows, column, space, kwargs)
            total = vectors if total is None else total + vectors
        assert total is not None
        if len(columns) > 1:
            total = F.normalize(total, dim=-1)
        return total.numpy()

    def similarity(self, embeddings1: Matrix, embeddings2: Matrix) -> Tensor:
        """Cosines of all rows with all rows, float32 `[N1, N2]`."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Matrix, embeddings2: Matrix) -> Tensor:
        """Cosines of each row with its counterpart, float32 `[N]`."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)

    def _encode_column(self, rows: Any, column: str, space: Any, options: dict[str, Any]) -> Tensor:
        """Vectors of one modality, float32 `[N, D]`; zeros for rows without it."""
        if hasattr(rows, "select_columns"):  # the others would be read from disk for nothing
            rows = rows.select_columns([column])
        values = (row[column] for row in rows)
        present: list[bool] = []

        def given() -> Iterator[Any]:
            for value in values:
                present.append(value is not None)
                if value is not None:
                    yield _source(value, column)

        form: dict[str, Any] = {
            "space": space,
            "batch_size": options.get("batch_size", BATCH_SIZE),
            "show_progress": options.get("show_progress_bar", False),
        }
        if column == "text":
            vectors = self.extractor.encode_text(given(), on_error="skip", **form)
        else:
            encode = getattr(self.extractor, f"encode_{MODALITY_OF[column]}")
            form |= {"num_windows": self.num_windows, "on_error": self.on_error}
            vectors = encode(given(), **form)
        table = torch.zeros(len(present), vectors.shape[1])
        table[torch.tensor(present)] = vectors.nan_to_num(nan=0.0)  # rows that were skipped
        return table

    def _space(self, columns: list[str]) -> str | None:
        """The space of a task.

        Args:
            columns: The task's modalities, in mteb's names; those that the model lacks do not
                count, mteb warns of them.
        """
        names = list(dict.fromkeys(MODALITY_OF[c] for c in columns if c in self.modalities))
        if self.space != "auto" or len(names) < 2:
            return self.space
        return self.extractor.embedder.shared_space(*names)

    def _widths(self) -> int | list[int]:
        """Width of the vectors: one number, or a number per space if they differ."""
        embedder = self.extractor.embedder
        widths: set[int] = set()
        for modality in self.extractor.model.config.modalities:
            forms = embedder.forms([modality], "all" if self.space == "auto" else self.space)
            widths |= {embedder.shape(form)[0] for form in forms}
        return widths.pop() if len(widths) == 1 else sorted(widths)

    def _experiment(self) -> dict[str, Any]:
        """Settings other than the defaults that change the vectors; part of mteb's result names."""
        usual = {"space": "auto", "num_windows": NUM_WINDOWS, "on_error": "raise"}
        chosen = {name: getattr(self, name) for name in usual}
        dtype = self.extractor.encoder.dtype
        if dtype != torch.float32:
            chosen["dtype"] = str(dtype).removeprefix("torch.")
        return {name: str(one) for name, one in chosen.items() if one != usual.get(name)}


def load_mteb() -> "ModuleType":
    """Imports the optional package mteb.

    Raises:
        UserError: mteb is not installed.
    """
    load_torchaudio()  # mteb's transformers import it too, and would stop at its compiled part
    return load_extra("mteb", UserError('this needs mteb: pip install "vatt[mteb]"'))


def _undecoded(rows: Any) -> Any:
    """The same rows with files instead of decoders, which would need torchcodec.

    Args:
        rows: A `datasets.Dataset`; mteb has one of its own too, of images, which need no change.
    """
    from datasets import Audio, Dataset, Video

    if not isinstance(rows, Dataset):
        return rows
    for name, feature in rows.features.items():
        if isinstance(feature, Audio | Video) and feature.decode:
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _source(value: Any, column: str) -> Any:
    """Value of a column as a source for `FeatureExtractor`.

    Raises:
        TypeError: the value has a type that mteb does not document.
    """
    if column == "text" and isinstance(value, str):
        return value
    if column == "image" and hasattr(value, "convert"):  # an image of Pillow
        return np.array(value.convert("RGB"))
    if column in ("audio", "video") and isinstance(value, dict) and {"bytes", "path"} <= {*value}:
        return _file(value)
    if column == "audio" and isinstance(value, dict) and {"array", "sampling_rate"} <= {*value}:
        return audio_media(np.asarray(value["array"], dtype=np.float32), value["sampling_rate"])
    form = {"text": "str", "image": "images of Pillow"}.get(column, "files")
    raise TypeError(f"column {column!r} of a task holds {form}, got {type(value).__name__}")


def _file(value: dict[str, Any]) -> MediaSource:
    """A file of `datasets`: its content, its path, or its content from where the path points."""
    if value["bytes"] is not None:
        return value["bytes"]
    if "://" not in value["path"]:
        return value["path"]
    import fsspec

    with fsspec.open(value["path"], "rb") as file:
        return file.read()


def _unit(vectors: Matrix) -> Tensor:
    return F.normalize(torch.as_tensor(vectors).float(), dim=-1)
