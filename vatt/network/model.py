"""VATT: one transformer for the three modalities, or one each, with contrastive heads.

Source: Akbari et al., NeurIPS 2021, section 3; google-research/vatt `modeling`. Shape legend in
`vatt.batch`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.batch import Batch, Facts
from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.config.model import VATTConfig
from vatt.errors import UserError
from vatt.network.heads import Classifier, FACHead, JointHead, at_least_float32
from vatt.network.input_checks import expect_ids, expect_image, expect_range, expect_text
from vatt.network.layers import AttentionLayer, Encoder, init_weights, roll_out
from vatt.network.tokens import LinearText, PatchTokens, WordTokens

HEAD_PREFIXES = ("head.", "classifier.")  # of parameters in a network; the rest is its backbone


@dataclass(kw_only=True)
class VATTOutput:
    """Output of the model for a batch.

    Modalities that the batch lacks have no entry; rows that a mask excludes are zeros.

    Args:
        features: Pooled AGG features: `video` and `audio` float `[B, D]`, `text` float `[B, K, D]`.
        embeddings: Embeddings in the common spaces, not normalised, float32. FAC head: `video_va`,
            `audio_va` `[B, d_va]`, `video_vt` `[B, d_vt]`, `text_vt` `[B, K, d_vt]`; joint head:
            `video_joint`, `audio_joint` `[B, d_joint]`, `text_joint` `[B, K, d_joint]`.
        logits: Logits of the classifier, float32 `[B, num_classes]`. None: no classifier.
        attention: Attention by modality, if requested: float `[B, N, 1 + L, 1 + L]`, for text
            `[B, K, N, 1 + L, 1 + L]` with `L` of the longest caption; AGG first. `N` is 1 for
            rollout.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)


class ClipConfig(Protocol):
    """Configuration of a network, as far as it says which clips the network takes."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the network."""

    @property
    def video(self) -> VideoConfig:
        """Geometry of video clips."""

    @property
    def audio(self) -> AudioConfig:
        """Geometry of audio clips."""


class ContrastiveNetwork(Protocol):
    """A module that contrastive training can train: `VATT`, and open models of others."""

    training: bool

    @property
    def config(self) -> ClipConfig:
        """Configuration of the network."""

    def __call__(self, batch: Batch) -> VATTOutput:
        """Embeddings of a batch."""

    def encode_batch(self, batch: Batch) -> dict[str, Tensor]:
        """First half of the forward pass; see `VATT.encode_batch`."""

    def embed_rows(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> VATTOutput:
        """Second half of the forward pass; see `VATT.embed_rows`."""

    def feature_width(self, modality: str) -> int:
        """Width of the features of a modality."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Weights by name; those of the second half have `HEAD_PREFIXES`."""


class VATT(nn.Module):
    """Video-Audio-Text Transformer.

    Args:
        config: Sizes and arrangement; `vatt.preset` has the published ones.
    """

    def __init__(self, config: VATTConfig) -> None:
        super().__init__()
        self.config = config
        self.agnostic = config.arrangement == "agnostic"
        modalities = config.modalities
        self.video_tokens = self._patch_tokens("video") if "video" in modalities else None
        self.audio_tokens = self._patch_tokens("audio") if "audio" in modalities else None
        self.text_tokens = self._text_tokens() if "text" in modalities else None
        self.encoders = nn.ModuleDict(self._encoders())
        d_model = config.encoder.d_model
        projected = modalities if self.agnostic else ()
        self.post_projections = nn.ModuleDict(
            {name: nn.Linear(d_model, config.d_post) for name in projected}
        )
        widths = {name: config.feature_width(name) for name in config.modalities}
        self.head: FACHead | JointHead | None = None
        if config.head is not None:
            head = FACHead if config.head.kind == "fac" else JointHead
            self.head = head(config.head, widths)
        self.classifier = None
        if config.classifier is not None:
            self.classifier = Classifier(config.classifier, widths[config.classifier.modality])
        self.init_weights()

    def init_weights(self) -> None:
        """Draws new weights, as Keras does for the official model."""
        self.apply(init_weights)

    def _patch_tokens(self, modality: str) -> PatchTokens:
        config, encoder = self.config, self.config.tower(modality)
        return PatchTokens(
            config.video if modality == "video" else config.audio,
            encoder.d_model,
            agnostic=self.agnostic,
            drop_token=config.drop_rate(modality),
            dropout=encoder.dropout,
        )

    def _text_tokens(self) -> WordTokens | LinearText:
        config, encoder = self.config, self.config.tower("text")
        if config.text.tower == "linear":
            return LinearText(config.text)
        return WordTokens(
            config.text, encoder.d_model, agnostic=self.agnostic, dropout=encoder.dropout
        )

    def _encoders(self) -> dict[str, Encoder]:
        config = self.config
        if self.agnostic:
            return {"shared": Encoder(config.encoder)}
        encoders = {name: Encoder(config.tower(name)) for name in config.media_modalities}
        if isinstance(self.text_tokens, WordTokens):
            encoders["text"] = Encoder(config.tower("text"), t5=config.text)
        return encoders

    def tokens_of(self, modality: str) -> PatchTokens | WordTokens | LinearText:
        """Module that makes the tokens of a modality.

        Raises:
            UserError: the model lacks the modality.
        """
        self.config.check_modality(modality)
        tokens: PatchTokens | WordTokens | LinearText = getattr(self, f"{modality}_tokens")
        return tokens

    def encode_video(self, video: Tensor) -> Tensor:
        """Clips uint8 in 0…255 or float in [-1, 1], `[B, T, H, W, C]` → features float `[B, D]`.

        Other floats are refused, and floats in [0, 1] are warned of: scale them, `video * 2 - 1`.
        """
        expect_range(video, self.training)
        return self.encode("video", video)

    def encode_image(self, image: Tensor) -> Tensor:
        """Images uint8 in 0…255 or float in [-1, 1], `[B, H, W, C]` → features float `[B, D]`.

        An image is treated as a still video of one patch [P].
        """
        expect_image(image)
        num_frames = self.config.video.patch_size[0]
        return self.encode_video(image.unsqueeze(1).expand(-1, num_frames, -1, -1, -1))

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Waveforms float in [-1, 1], `[B, S]` → features float `[B, D]`.

        Spectrogram models also accept log-mel spectrograms, float in [0, 1], `[B, M, F]`.
        """
        return self.encode("audio", audio)

    def encode_text(self, text: Tensor) -> Tensor:
        """Captions int64 `[B, J]`, 0 = padding → features float `[B, D]`.

        Padding that all captions share is cut off. If none is left, no mask is made.
        """
        return self.encode("text", text)

    def encode(
        self,
        modality: str,
        raw: Tensor,
        has_padding: bool | None = None,
        seen: list[Tensor] | None = None,
        layer: AttentionLayer = -1,
    ) -> Tensor:
        """Pooled features of one modality.

        Args:
            modality: `video`, `audio` or `text`.
            raw: Input of `encode_video`, `encode_audio` or `encode_text`.
            has_padding: Whether captions contain padding, which needs a mask. None: the ids decide,
                and padding that all captions share is cut off.
            seen: List that receives attention weights (`Encoder.forward`); the linear text tower
                has none.
            layer: Block whose weights to store (`Encoder.forward`).

        Returns:
            float `[B, D]`.
        """
        hidden = self._hidden(modality, raw, has_padding, seen, layer)
        is_linear = isinstance(self.tokens_of(modality), LinearText)
        return self._project(modality, hidden.amax(dim=1) if is_linear else hidden[:, 0])

    def encode_tokens(self, modality: str, raw: Tensor) -> Tensor:
        """Encoder output for every token; in training, for the tokens that DropToken keeps.

        Args:
            modality: `video`, `audio` or `text`.
            raw: Input of `encode_video`, `encode_audio` or `encode_text`.

        Returns:
            float `[B, 1 + L, D]`, AGG first; for the linear text tower `[B, L, D]`, without AGG.
        """
        return self._project(modality, self._hidden(modality, raw))

    def embed_video(self, video: Tensor) -> dict[str, Tensor]:
        """Clips → `va` float32 `[B, d_va]` and `vt` float32 `[B, d_vt]`, or `joint`."""
        return self._embed("video", self.encode_video(video))

    def embed_audio(self, audio: Tensor) -> dict[str, Tensor]:
        """Waveforms → `va` float32 `[B, d_va]`, or `joint`; not normalised."""
        return self._embed("audio", self.encode_audio(audio))

    def embed_text(self, text: Tensor) -> dict[str, Tensor]:
        """Captions → `vt` float32 `[B, d_vt]`, or `joint`."""
        return self._embed("text", self.encode_text(text))

    def forward(
        self,
        batch: Batch,
        *,
        return_attention: bool = False,
        attention_layer: AttentionLayer = -1,
    ) -> VATTOutput:
        """Encodes a batch; rows without a modality and empty captions cost nothing.

        Args:
            batch: Clips; modalities that the model lacks are ignored.
            return_attention: Whether to return attention weights. It disables dropout of attention;
                in training, the weights cover only tokens that DropToken keeps. The linear text
                tower has no attention.
            attention_layer: Index of the block whose attention to return, which all encoders must
                have, or `rollout` (`vatt.network.layers.roll_out`).

        Raises:
            ValueError: an input is invalid (`vatt.network.input_checks`).
            UserError: there is no such block.
        """
        if not isinstance(batch, Batch):
            raise TypeError(f"the model takes a vatt.Batch, got {type(batch).__name__}")
        attention: dict[str, Tensor] | None = {} if return_attention else None
        features = self.encode_batch(batch, attention, attention_layer)
        output = self.embed_rows(features, batch.masks)
        for modality, rows in (attention or {}).items():
            output.attention[modality] = place_rows(rows, batch.masks[modality])
        return output

    def encode_batch(
        self,
        batch: Batch,
        attention: dict[str, Tensor] | None = None,
        attention_layer: AttentionLayer = -1,
    ) -> dict[str, Tensor]:
        """First half of `forward`: features of the rows that have a modality, by modality.

        Args:
            batch: Clips; modalities that the model lacks are ignored.
            attention: Dict that receives the attention of these rows by modality. None: it is not
                stored.
            attention_layer: Index of the block, or `rollout`.

        Returns:
            float `[rows, D]` by modality; every caption is a row. Modalities that the batch or the
            model lacks have no entry.
        """
        if attention is not None:
            self._check_layer(attention_layer)
        features = {}
        for modality in self.config.modalities:
            raw = present_rows(batch, modality)
            if raw is None:
                continue
            has_padding = False
            if modality == "text":
                raw, has_padding = self._cut(raw, batch.facts)
            seen: list[Tensor] | None = None if attention is None else []
            features[modality] = self.encode(modality, raw, has_padding, seen, attention_layer)
            if attention is not None and seen:
                attention[modality] = _attention_of(seen, attention_layer)
        return features

    def feature_width(self, modality: str) -> int:
        """Width of the pooled features of a modality."""
        return self.config.feature_width(modality)

    def embed_rows(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> VATTOutput:
        """Second half of `forward`: applies the heads, and puts rows in their places in the batch.

        Args:
            features: Features of `encode_batch`, or those of several batches concatenated.
            masks: Places of these rows by modality, bool `[B]`, for text `[B, K]`.
        """
        output = VATTOutput()
        for modality in self.config.modalities:  # in the same order on all ranks
            if modality not in features:
                continue
            rows, mask = features[modality], masks[modality]
            output.features[modality] = place_rows(rows, mask)
            if self.head is not None:
                for space, embedding in self._embed(modality, rows).items():
                    output.embeddings[f"{modality}_{space}"] = place_rows(embedding, mask)
            if self.classifier is not None and self.classifier.config.modality == modality:
                output.logits = place_rows(self.classifier(rows), mask)
        return output

    def _check_layer(self, layer: AttentionLayer) -> None:
        """Refuses a block that any encoder lacks, before any encoder runs."""
        for name in self.encoders:
            count = self.config.tower("video" if name == "shared" else name).num_layers
            if layer != "rollout" and layer not in range(-count, count):
                raise UserError(
                    f"the {name} encoder: attention_layer must be in [-{count}, {count}) or "
                    f"'rollout', got {layer!r}"
                )

    def _cut(self, ids_BJ: Tensor, facts: Facts) -> tuple[Tensor, bool]:
        """Captions without the padding that all share, and whether any padding is left."""
        expect_text(ids_BJ, self.config.text.max_words)
        lowest, highest = min(facts.lowest_id, default=0), max(facts.highest_id, default=0)
        expect_ids(lowest, highest, self.config.text.vocab_size)
        return ids_BJ[:, : facts.longest_caption], facts.has_padding

    def _hidden(
        self,
        modality: str,
        raw: Tensor,
        has_padding: bool | None = None,
        seen: list[Tensor] | None = None,
        layer: AttentionLayer = -1,
    ) -> Tensor:
        """Tokens after the encoder, float `[rows, 1 + L, D]`."""
        to_tokens = self.tokens_of(modality)
        if has_padding is None and modality == "text":
            expect_text(raw, self.config.text.max_words)
            present = torch.ones(len(raw), 1, dtype=torch.bool, device=raw.device)
            raw, has_padding = self._cut(raw, Batch(text=raw[:, None], text_mask=present).facts)
        tokens, mask = to_tokens(raw)
        name = "shared" if self.agnostic else modality
        if name not in self.encoders:  # the linear text tower
            return tokens
        return self.encoders[name](tokens, mask if has_padding else None, seen, layer)

    def _project(self, modality: str, hidden: Tensor) -> Tensor:
        if modality not in self.post_projections:
            return hidden
        return F.gelu(self.post_projections[modality](hidden))

    def _embed(self, modality: str, features: Tensor) -> dict[str, Tensor]:
        if self.head is None:
            raise UserError("this model has no common spaces: its config has head null")
        embeddings = self.head(modality, features)
        return {space: at_least_float32(value) for space, value in embeddings.items()}

    @torch.no_grad()
    def agg_attention(self, video: Tensor, layer: AttentionLayer = -1) -> Tensor:
        """Attention of the AGG token to each part of a clip, mean over heads.

        Args:
            video: uint8 or float in [-1, 1], `[B, T, H, W, C]`.
            layer: Index of the block, negative from the end, or `rollout`.

        Returns:
            float `[B, T', H', W']` on the token grid; each clip sums to 1 minus the attention of
            AGG to itself.

        Raises:
            RuntimeError: the model is in training mode, in which DropToken removes parts of the
                grid.
        """
        if self.training:
            raise RuntimeError(
                "agg_attention needs the whole grid of tokens: call model.eval() first"
            )
        self._check_layer(layer)
        seen: list[Tensor] = []
        self._hidden("video", video, seen=seen, layer=layer)
        assert self.video_tokens is not None
        agg_BL = _attention_of(seen, layer)[:, :, 0, 1:].mean(dim=1)
        return agg_BL.unflatten(1, self.video_tokens.grid_of(video))


def _attention_of(seen: list[Tensor], layer: AttentionLayer) -> Tensor:
    """Attention from the weights that `Encoder.forward` gave."""
    return roll_out(seen) if layer == "rollout" else seen[0]


def present_rows(batch: Batch, modality: str) -> Tensor | None:
    """Raw input `[rows, …]` of the rows that have a modality; every caption is a row.

    These are the rows at which the mask of the batch is True. Returns None if there are none.
    """
    raw, mask = getattr(batch, modality), getattr(batch, f"{modality}_mask")
    num_rows = batch.facts.num_rows(modality)
    if raw is None or mask is None or num_rows == 0:
        return None
    rows = raw.flatten(0, mask.ndim - 1)
    if num_rows == len(rows):
        return rows
    # as rows[mask], which would wait for the device to count them
    order = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)
    return rows[order[:num_rows]]


def place_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Places rows where the mask is True, zeros elsewhere: `[rows, …]` → `[*mask.shape, …]`."""
    if len(values) == mask.numel():
        return values.unflatten(0, mask.shape)
    full = values.new_zeros(*mask.shape, *values.shape[1:])
    return full.masked_scatter(mask.reshape(*mask.shape, *[1] * (values.ndim - 1)), values)


def backbone_and_head(
    network: ContrastiveNetwork | nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of a network in two groups: backbone, and heads with classifier."""
    backbone: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (head if name.startswith(HEAD_PREFIXES) else backbone).append(parameter)
    return backbone, head
