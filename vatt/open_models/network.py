"""Open models of others as networks of our contrastive training.

They have the interface of `vatt.VATT` that training uses: `config`, `head`, `encode_batch`,
`embed_rows` and `forward`. Shape legend in `vatt.batch`.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vatt.batch import Batch, Facts
from vatt.config.open_model import OpenModelConfig
from vatt.encoders.transformers_loading import load_pretrained, load_transformers
from vatt.errors import CheckpointError, UserError, nearest
from vatt.network.heads import FACHead, JointHead, at_least_float32
from vatt.network.input_checks import expect_ids, expect_text
from vatt.network.model import VATTOutput, place_rows, present_rows
from vatt.open_models.tokenizer import SHIFT, TextPadding


class Scale(NamedTuple):
    """Logit scale of a pair of modalities, as a factor of the cosine, and bias."""

    factor: float
    bias: float | None = None


class OpenModel(nn.Module):
    """Common part of the networks around open models; subclasses encode their modalities.

    BatchNorm keeps the statistics of the pre-trained model, and parts whose weights are all frozen
    stay in evaluation mode: no dropout there.

    Args:
        config: Settings; `vatt.open_models.settings.read_settings` reads them.
    """

    # glob patterns of weights that the embeddings do not depend on: DDP would wait for them
    UNUSED: tuple[str, ...] = ()
    spaces: Mapping[str, tuple[str, ...]]  # of each modality
    padding = TextPadding()
    head: FACHead | JointHead | None

    def __init__(self, config: OpenModelConfig) -> None:
        super().__init__()
        self.config = config
        self.head = None

    def encode(self, modality: str, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embeddings in all spaces of a modality, one beside the other; for towers, features.

        Args:
            modality: `video`, `audio` or `text`.
            raw: Clips `[rows, T, H, W, 3]`, waveforms `[rows, S]`, or ids of the model `[rows, J]`.
            mask: bool `[rows, J]`, where a text has ids. None: everywhere.

        Returns:
            float `[rows, D]`.
        """
        raise NotImplementedError

    def scales(self) -> dict[str, Scale]:
        """The model's own logit scales, by name of the pair of modalities."""
        return {}

    def set_scales(self, scales: Mapping[str, Scale]) -> None:
        """Replaces the model's own logit scales by those of the loss, before it is saved."""

    def freeze(self) -> None:
        """Leaves out of training what the embeddings do not depend on, and `config.frozen`.

        Raises:
            UserError: a pattern fits no weight, or nothing is left to train.
        """
        names = [name for name, _ in self.named_parameters()]
        for pattern in self.config.frozen:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f"model.frozen: no weight has a name like {pattern!r}; the first of "
                    f"{len(names)} are {', '.join(names[:3])}.{nearest(pattern, names)}"
                )
        for name, weight in self.named_parameters():
            if any(fnmatchcase(name, p) for p in (*self.UNUSED, *self.config.frozen)):
                weight.requires_grad_(False)
        if not any(weight.requires_grad for weight in self.parameters()):
            raise UserError("model.frozen leaves no weight to train: name fewer")

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, except of frozen parts and of BatchNorm of pre-trained models."""
        super().train(mode)
        for part in self.children():
            if part is not self.head:
                _set_mode(part, mode)
        return self

    def forward(self, batch: Batch) -> VATTOutput:
        """Encodes a batch; rows without a modality and empty captions cost nothing.

        Args:
            batch: Clips; modalities that the model lacks are ignored.
        """
        return self.embed_rows(self.encode_batch(batch), batch.masks)

    def encode_batch(self, batch: Batch) -> dict[str, Tensor]:
        """First half of `forward`: output of `encode` for the rows that have a modality.

        Args:
            batch: Clips.

        Returns:
            float `[rows, D]` by modality; every caption is a row.
        """
        features = {}
        for modality in self.config.modalities:
            raw = present_rows(batch, modality)
            if raw is None:
                continue
            mask = None
            if modality == "text":
                raw, mask = self._token_ids(raw, batch.facts)
            features[modality] = self.encode(modality, raw, mask)
        return features

    def embed_rows(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> VATTOutput:
        """Second half of `forward`: embeddings by space, in their places in the batch.

        Args:
            features: Output of `encode_batch`, or those of several batches concatenated.
            masks: Places of these rows by modality, bool `[B]`, for text `[B, K]`.
        """
        output = VATTOutput()
        for modality in self.config.modalities:  # in the same order on all ranks
            if modality not in features:
                continue
            rows, mask = features[modality], masks[modality]
            output.features[modality] = place_rows(rows, mask)
            for space, embedding in self.split(modality, rows).items():
                placed = place_rows(at_least_float32(embedding), mask)
                output.embeddings[f"{modality}_{space}"] = placed
        return output

    def feature_width(self, modality: str) -> int:
        """Width of the output of `encode`."""
        raise NotImplementedError

    def split(self, modality: str, rows: Tensor) -> dict[str, Tensor]:
        """Embeddings by space."""
        if self.head is not None:
            return self.head(modality, rows)
        spaces = self.spaces[modality]
        return dict(zip(spaces, rows.chunk(len(spaces), dim=1), strict=True))

    def _token_ids(self, ids_BJ: Tensor, facts: Facts) -> tuple[Tensor, Tensor | None]:
        """Ids of the model, and where there are any; without padding that all captions share."""
        expect_text(ids_BJ, self.config.text.max_words)
        lowest, highest = min(facts.lowest_id, default=0), max(facts.highest_id, default=0)
        expect_ids(lowest, highest, self.config.text.vocab_size)
        has_padding = facts.has_padding
        if self.padding.is_full:
            ids_BJ = F.pad(ids_BJ, (0, self.config.text.max_words - ids_BJ.shape[1]))
            has_padding = True
        else:
            ids_BJ = ids_BJ[:, : facts.longest_caption]
        mask = ids_BJ != 0
        if has_padding and self.padding.is_left:
            order = mask.byte().argsort(dim=1, stable=True)
            ids_BJ, mask = ids_BJ.gather(1, order), mask.gather(1, order)
        ids = torch.where(mask, ids_BJ - SHIFT, self.padding.token_id)
        return ids, mask if has_padding and self.padding.is_masked else None


def _set_mode(part: nn.Module, mode: bool) -> None:
    """Sets the mode of a part and of all within it."""
    weights = list(part.parameters())
    mode = mode and not (weights and not any(weight.requires_grad for weight in weights))
    part.training = mode and not isinstance(part, _BatchNorm)
    for child in part.children():
        _set_mode(child, mode)


def load_model(source: str) -> Any:
    """A transformers model of its own class in float32, with all weights.

    Raises:
        UserError: the weights are missing or cannot be read.
    """
    try:
        return load_pretrained(load_transformers().AutoModel, source)
    except CheckpointError as error:
        raise UserError(f"init_from: {error}") from error


def pooled(output: Any) -> Tensor:
    """Pooled vectors of a transformers model, float `[rows, D]`."""
    return output if isinstance(output, Tensor) else output.pooler_output
