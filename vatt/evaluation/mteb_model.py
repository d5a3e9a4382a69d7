"""Interface to the `mteb` library, for tasks with video, sound, images and text.

`N` is the number of rows of a task's data set, `D` the width of its space.
"""

import os
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vatt.encoders.encoder import BOTH, PARTS
from vatt.encoders.transformers_loading import prepare_imports
from vatt.errors import UserError
from vatt.features.extractor import NUM_WINDOWS, FeatureExtractor, OnError
from vatt.system.extras import load_extra
from vatt.system.progress import progress_bar

if TYPE_CHECKING:
    from types import ModuleType

    from mteb.models.model_meta import ModelMeta
    from mteb.types import PromptType

BATCH_SIZE = 32  # mteb's own, of rows
MODALITY_OF = {"video": "video", "image": "video", "audio": "audio", "text": "text"}  # by column
Matrix = NDArray[np.float32] | Tensor


@dataclass(eq=False, repr=False)
class MtebModel:
    """Model for `mteb.evaluate(model, tasks=…)`, which implements mteb's `EncoderProtocol`.

    All queries and documents of a task are encoded in the space that all its modalities share. With
    separate heads this is `vt` if the task has text (audio enters it through the last step of the
    video head), and `va` for pictures with sound. An image is a still video. Rows are encoded as by
    `vatt.sentence_transformers.VATTModule`: video and audio of a row by `encode_video_audio`, other
    rows with several modalities as the mean of their unit vectors, for which the model was not
    trained. A text without a known word becomes a vector of zeros, which matches nothing.

    Our reader reads the files at their own rates, before `datasets` decodes mteb's columns. Neither
    torchcodec nor torchvision is needed. mteb's own wrapper of sentence-transformers would decode
    whole files by torchcodec, pass on their frames without the frame rate, and take all models in
    memory for models of text.

    Args:
        extractor: Feature extractor.
        name: Name for the results of mteb, `organisation/model`.
        space: A common space, or None: features of the backbone, for tasks of one modality. "auto":
            as described above; for a single modality as in `FeatureExtractor`.
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

        encoder, modalities = self.extractor.encoder, self.modalities
        parameters = list(encoder.model.parameters())
        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": encoder.digest(),
                "n_parameters": sum(p.numel() for p in parameters),
                "memory_usage_mb": sum(p.numel() * p.element_size() for p in parameters) / 2**20,
                "max_tokens": encoder.max_tokens if "text" in modalities else None,
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
        has = self.extractor.encoder.modalities
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
        from vatt.sentence_transformers import as_sentence_transformer

        rows = _undecoded(inputs.dataset)
        columns = [column for column in rows.features if column in self.modalities]
        if not columns:
            raise UserError(
                f"nothing to encode: {task_metadata.name} has {', '.join(rows.features)}, "
                f"the model {', '.join(self.modalities)}"
            )
        model = as_sentence_transformer(
            self.extractor,
            space=self._space(task_metadata.modalities),
            num_windows=self.num_windows,
            on_error=self.on_error,
        )
        if hasattr(rows, "select_columns"):  # the others would be read from disk for nothing
            rows = rows.select_columns(columns)
        batch_size = kwargs.get("batch_size", BATCH_SIZE)
        show = kwargs.get("show_progress_bar", False)
        each = iter(progress_bar(rows, "encode", unit="row", show=show))
        vectors = []
        while batch := list(islice(each, batch_size)):  # files of a batch are in memory
            parts = [{column: row[column] for column in columns} for row in batch]
            vectors.append(model.encode(parts, batch_size=batch_size, show_progress_bar=False))
        return np.concatenate(vectors)

    def similarity(self, embeddings1: Matrix, embeddings2: Matrix) -> Tensor:
        """Cosines of all rows with all rows, float32 `[N1, N2]`."""
        from sentence_transformers.util import cos_sim

        return cos_sim(torch.as_tensor(embeddings1).float(), torch.as_tensor(embeddings2).float())

    def similarity_pairwise(self, embeddings1: Matrix, embeddings2: Matrix) -> Tensor:
        """Cosines of each row with its counterpart, float32 `[N]`."""
        from sentence_transformers.util import pairwise_cos_sim

        first, second = torch.as_tensor(embeddings1), torch.as_tensor(embeddings2)
        return pairwise_cos_sim(first.float(), second.float())

    def _space(self, columns: list[str]) -> str | None:
        """The space of a task.

        Args:
            columns: The task's modalities, in mteb's names; those that the model lacks do not
                count, mteb warns of them.
        """
        names = list(dict.fromkeys(MODALITY_OF[c] for c in columns if c in self.modalities))
        if self.space != "auto" or not names:
            return self.space
        embedder = self.extractor.embedder
        if len(names) == 1:
            return embedder.form(names[0], "auto", return_tokens=False, normalize=True).space
        if not embedder.shared_spaces(*names) and {*PARTS[BOTH]} < {*names}:  # PE-AV's of both
            names = [BOTH, *(name for name in names if name not in PARTS[BOTH])]
        return embedder.shared_space(*names)

    def _widths(self) -> int | list[int]:
        """Width of the vectors: one number, or a number per space if they differ."""
        embedder = self.extractor.embedder
        widths: set[int] = set()
        for modality in self.extractor.encoder.modalities:
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
    prepare_imports()  # mteb imports transformers
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
