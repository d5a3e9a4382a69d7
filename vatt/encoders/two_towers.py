"""`TwoTowers`: models of transformers with a tower of texts and one of pictures or sound."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vatt.encoders.encoder import Encoder
from vatt.encoders.model_folder import VOCABULARIES, settings_of
from vatt.encoders.texts import count_tokens, most_tokens
from vatt.encoders.transformers_loading import load_errors, load_pretrained, load_transformers
from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import sha256_of

JOINT = "joint"


class TwoTowers(Encoder):
    """Model of transformers with its processor, and one space.

    Features of the backbone are the pooled outputs before the projection into the space.

    Args:
        model: The network.
        processor: Processor of texts and of pictures or sound, of the same library.
        settings: Description of all that the vectors depend on beside the weights.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights stay float32.

    Raises:
        UserError: the device or dtype does not exist.
    """

    model: Any
    classes: ClassVar[Mapping[str, str]]  # of transformers, by `model_type`
    part: ClassVar[str]  # of the processor, beside the tokenizer

    @classmethod
    def load(
        cls, folder: Path, model_type: str, device: str | torch.device, dtype: str | torch.dtype
    ) -> Self:
        """Loads a model of one of the `classes`; for errors see `load_parts`."""
        parts = load_parts(folder, cls.classes[model_type], cls.part)
        return cls(*parts, device=device, dtype=dtype)

    def __init__(
        self,
        model: Any,
        processor: Any,
        settings: bytes = b"",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(model, device, dtype)
        self.processor = processor
        self._settings = settings
        text = model.config.text_config
        positions = text.max_position_embeddings
        if model.config.model_type == "clap":  # RoBERTa's positions begin behind that of padding
            positions -= text.pad_token_id + 1
        self.max_tokens = most_tokens(processor.tokenizer.model_max_length, positions)

    def spaces(self, modality: str) -> tuple[str, ...]:
        """See `Encoder`."""
        return (JOINT,) if modality in self.modalities else ()

    def count_tokens(self, text: str) -> int:
        """See `Encoder`."""
        return count_tokens(self.processor.tokenizer, text)

    def encode(
        self, modality: str, rows: Sequence[Any], spaces: Sequence[str | None]
    ) -> dict[str | None, Tensor]:
        """See `Encoder`."""
        vectors = self._encode_texts(rows) if modality == "text" else self._encode_media(rows)
        return {space: vectors[space] for space in spaces}

    def digest(self) -> str:
        """See `Encoder`."""
        return sha256_of(self._settings, self.model.state_dict())

    @abstractmethod
    def _encode_media(self, rows: Sequence[Tensor]) -> dict[str | None, Tensor]:
        """Vectors of windows by space."""

    def _encode_texts(self, texts: Sequence[str]) -> dict[str | None, Tensor]:
        inputs = self.processor.tokenizer(
            list(texts),
            # SigLIP is trained with padding that it does not mask
            padding="max_length" if self.model.config.model_type.startswith("siglip") else True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        with self.autocast():
            pooled = self.model.text_model(**inputs).pooler_output
        return self._vectors("text", pooled)

    def _vectors(self, tower: str, pooled: Tensor) -> dict[str | None, Tensor]:
        """Features and embeddings of a tower: `text`, `visual` or `audio`."""
        projection = getattr(self.model, f"{tower}_projection", None)  # SigLIP has none
        with self.autocast():
            joint = pooled if projection is None else projection(pooled)
        return {None: pooled.float(), JOINT: joint.float()}


def load_parts(folder: Path, class_name: str, *parts: str) -> tuple[Any, Any, bytes]:
    """Model, processor and description of a model of transformers.

    Args:
        folder: Model folder.
        class_name: Class of the model.
        parts: What the processor must have beside a tokenizer: `image_processor`,
            `video_processor`, `feature_extractor`.

    Raises:
        CheckpointError: a file is missing or damaged.
        UserError: transformers, or a package that the processor needs, is not installed.
    """
    transformers = load_transformers()
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except load_errors() as error:
        # in the words of `requires_backends` of transformers, also for SigLIP's tokenizer
        if isinstance(error, ImportError) and (
            name := re.search(r"requires the (\S+)", str(error))
        ):
            package = name[1].lower()
            raise UserError(f"{folder} needs {package}: pip install {package}") from error
        raise CheckpointError(_no_processor(folder, parts)) from error
    # without its words, a tokenizer loads all the same
    has_words = any((folder / name).is_file() for name in VOCABULARIES)
    if not has_words or not all(hasattr(processor, name) for name in (*parts, "tokenizer")):
        raise CheckpointError(_no_processor(folder, parts))
    model = load_pretrained(getattr(transformers, class_name), str(folder), local_files_only=True)
    return model, processor, settings_of(folder)


def _no_processor(folder: Path, parts: Sequence[str]) -> str:
    names = {
        "image_processor": "pictures",
        "video_processor": "video",
        "feature_extractor": "sound",
    }
    of = " and ".join(["texts", *(names[part] for part in parts)])
    return (
        f"{folder} has no processor of {of} that can be loaded: copy processor_config.json or "
        "preprocessor_config.json, tokenizer_config.json and the tokenizer's other files from "
        "where the model was made"
    )
