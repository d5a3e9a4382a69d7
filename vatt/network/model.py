"""VATT: one transformer for the three modalities, or one each, with contrastive heads.

Source: Akbari et al., NeurIPS 2021, section 3; google-research/vatt `modeling`. Shape legend in
`vatt.batch`.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.batch import Batch
from vatt.config.model import VATTConfig
from vatt.errors import UserError
from vatt.network.heads import Classifier, FACHead, JointHead, at_least_float32
from vatt.network.input_checks import expect_image
from vatt.network.layers import AttentionLayer, Encoder, init_weights
from vatt.network.tokens import LinearText, PatchTokens, WordTokens
from vatt.system.ranks import world_size

HEAD_PREFIXES = ("head.", "classifier.")  # of parameters in a network; the rest is its backbone


@dataclass(kw_only=True)
class VATTOutput:
    """What the model makes of a batch.

    Modalities that the batch lacks have no entry; rows that a mask excludes are zeros.

    Args:
        features: Pooled AGG features: `video` and `audio` float `[B, D]`, `text` float `[B, K, D]`.
        embeddings: In the common spaces, not normalised, float32. FAC head: `video_va`, `audio_va`
            `[B, d_va]`, `video_vt` `[B, d_vt]`, `text_vt` `[B, K, d_vt]`; joint head:
            `video_joint`, `audio_joint` `[B, d_joint]`, `text_joint` `[B, K, d_joint]`.
        logits: Of the classifier, float32 `[B, num_classes]`; None: there is none.
        attention: Where asked for, by modality: float `[B, N, 1 + L, 1 + L]`, text
            `[B, K, N, 1 + L, 1 + L]` with `L` of the longest caption, AGG first; `N` is 1 for
            rollout.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)


class VATT(nn.Module):
    """Video-Audio-Text Transformer.

    Args:
        config: Sizes and arrangement; `vatt.preset` has the published ones.
    """

    def __init__(self, config: VATTConfig) -> None:
        super().__init__()
        self.config = config
        self.agnostic = config.arrangement == "agnostic"
        has = config.modalities.__contains__
        self.video_tokens = self._patch_tokens("video") if has("video") else None
        self.audio_tokens = self._patch_tokens("audio") if has("audio") else None
        self.text_tokens = self._text_tokens() if has("text") else None
        self.encoders = nn.ModuleDict(self._encoders())
        d_model = config.encoder.d_model
        self.post_projections = nn.ModuleDict(
            {name: nn.Linear(d_model, config.d_post) for name in config.modalities}
            if self.agnostic
            else {}
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
        """Draws all weights anew, as Keras draws those of the official model."""
        self.apply(init_weights)

    def _patch_tokens(self, modality: str) -> PatchTokens:
        config, encoder = self.config, self.config.tower(modality)
        drop_token = config.drop_token
        if modality == "audio" and config.audio_drop_token is not None:
            drop_token = config.audio_drop_token
        return PatchTokens(
            config.video if modality == "video" else config.audio,
            encoder.d_model,
            agnostic=self.agnostic,
            drop_token=drop_token,
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
        encoders = {
            name: Encoder(config.tower(name)) for name in config.modalities if name != "text"
        }
        if isinstance(self.text_tokens, WordTokens):
            encoders["text"] = Encoder(
                config.tower("text"),
                t5=True,
                relative_buckets=config.text.relative_buckets,
                relative_max_distance=config.text.relative_max_distance,
            )
        return encoders

    def encode_video(self, video: Tensor) -> Tensor:
        """Clips uint8 or float in [-1, 1], `[B, T, H, W, C]` → features float `[B, D]`."""
        return self._encode("video", video)[0]

    def encode_image(self, image: Tensor) -> Tensor:
        """Images uint8 or float in [-1, 1], `[B, H, W, C]` → features float `[B, D]`.

        An image enters as a video that stands still for one patch [P].
        """
        expect_image(image)
        num_frames = self.config.video.patch_size[0]
        return self.encode_video(image.unsqueeze(1).expand(-1, num_frames, -1, -1, -1))

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Waveforms float in [-1, 1], `[B, S]` → pooled features float `[B, D]`.

        A spectrogram model takes its log-mel, float in [0, 1], `[B, M, F]`, too.
        """
        return self._encode("audio", audio)[0]

    def encode_text(self, text: Tensor) -> Tensor:
        """Captions int64 `[B, J]`, 0 = padding → pooled features float `[B, D]`.

        Captions are cut to the longest of them; where none is padded no mask is made.
        """
        return self._encode("text", text)[0]

    def encode_tokens(self, modality: str, raw: Tensor) -> Tensor:
        """What the encoder makes of every token; in training, of those that DropToken keeps.

        Args:
            modality: `video`, `audio` or `text`.
            raw: As for `encode_video`, `encode_audio` or `encode_text`.

        Returns:
            float `[B, 1 + L, D]`, AGG first; of the linear text tower `[B, L, D]`, it has no AGG.
        """
        if isinstance(self._tokens(modality), LinearText):
            return self._tokens(modality)(raw)
        return self._project(modality, self._hidden(modality, raw, None)[0])

    def embed_video(self, video: Tensor) -> dict[str, Tensor]:
        """Clips → `va` float32 `[B, d_va]` and `vt` float32 `[B, d_vt]`, or `joint`."""
        return self._embed("video", self.encode_video(video))

    def embed_audio(self, audio: Tensor) -> dict[str, Tensor]:
        """Waveforms → `va` float32 `[B, d_va]`, or `joint`; not normalised, as all of these."""
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
        """Encodes what the batch holds; absent rows and empty captions cost nothing.

        In distributed training all ranks must call every module, so that a rank without any row of
        a modality encodes one blank row, which counts nowhere.

        Args:
            batch: Clips; modalities that the model does not have are passed over.
            return_attention: Whether to return where tokens look; costs nothing when off. When on,
                attention has no dropout; in training DropToken leaves out tokens. The linear text
                tower has none.
            attention_layer: The block whose attention to return, which all encoders must have, or
                `rollout` (`Encoder.forward_with_attention`).

        Raises:
            ValueError: inputs that `vatt.network.input_checks` refuses, or no such block.
        """
        if not isinstance(batch, Batch):
            raise TypeError(f"the model takes a vatt.Batch, got {type(batch).__name__}")
        output = VATTOutput()
        layer = attention_layer if return_attention else None
        self._check_layer(layer)
        for modality in self.config.modalities:
            raw, mask = present_rows(batch, modality)
            if raw is not None and mask is not None:
                features, attention = self._encode(modality, raw, layer)
                self._fill(output, modality, features, mask)
                if attention is not None:
                    output.attention[modality] = place_rows(attention, mask)
            elif self.training and world_size() > 1:
                features = self._encode(modality, self._blank_row(modality))[0][:0]
                self._fill(
                    output, modality, features, no_row(len(batch), modality, features.device)
                )
        return output

    def encode_batch(self, batch: Batch) -> dict[str, Tensor]:
        """The first half of `forward`: by modality, features of the rows that are there.

        Returns:
            float `[rows, D]` each, captions as rows of their own; nothing for a modality that the
            batch or the model lacks.
        """
        features = {}
        for modality in self.config.modalities:
            raw, mask = present_rows(batch, modality)
            if raw is not None and mask is not None:
                features[modality] = self._encode(modality, raw)[0]
        return features

    def embed_rows(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> VATTOutput:
        """The second half of `forward`: heads, and rows put in their places.

        Args:
            features: As `encode_batch` gives them, or those of several batches behind each other.
            masks: By modality, bool `[B]` or, of text, `[B, K]`: the places of these rows.
        """
        output = VATTOutput()
        for modality in self.config.modalities:  # in the same order on all ranks
            if modality in features:
                self._fill(output, modality, features[modality], masks[modality])
        return output

    def _check_layer(self, layer: AttentionLayer | None) -> None:
        """Refuses a block that one of the encoders does not have, before any is run."""
        for name, encoder in self.encoders.items():
            assert isinstance(encoder, Encoder)
            try:
                encoder.block_index("rollout" if layer is None else layer)
            except UserError as error:
                raise UserError(f"the {name} encoder: {error}") from error

    def _fill(self, output: VATTOutput, modality: str, features: Tensor, mask: Tensor) -> None:
        """Takes the rows of one modality through the heads and puts them in their places."""
        output.features[modality] = place_rows(features, mask)
        if self.head is not None:
            for space, embedding in self._embed(modality, features).items():
                output.embeddings[f"{modality}_{space}"] = place_rows(embedding, mask)
        if self.classifier is not None and self.classifier.config.modality == modality:
            output.logits = place_rows(self.classifier(features), mask)

    def _blank_row(self, modality: str) -> Tensor:
        """Silence, darkness or one word, `[1, …]`."""
        device = next(self.parameters()).device
        if modality == "text":
            return torch.ones(1, 1, dtype=torch.int64, device=device)
        if modality == "audio":
            return torch.zeros(1, self.config.audio.num_samples, device=device)
        video = self.config.video
        size = (video.num_frames, video.image_size, video.image_size, 3)
        return torch.zeros(1, *size, device=device)

    def _tokens(self, modality: str) -> nn.Module:
        tokens = getattr(self, f"{modality}_tokens", None)
        if tokens is None:
            raise UserError(
                f"this model has {' and '.join(self.config.modalities)}, not {modality!r}"
            )
        assert isinstance(tokens, nn.Module)
        return tokens

    def _encode(
        self, modality: str, raw: Tensor, layer: AttentionLayer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Pooled features `[rows, D]` and, where asked for, attention."""
        tokens = self._tokens(modality)
        if isinstance(tokens, LinearText):
            return tokens(raw).amax(dim=1), None
        hidden, attention = self._hidden(modality, raw, layer)
        return self._project(modality, hidden[:, 0]), attention

    def _hidden(
        self, modality: str, raw: Tensor, layer: AttentionLayer | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens after the encoder `[rows, 1 + L, D]`, and attention."""
        made = self._tokens(modality)(raw)
        tokens, mask = made if isinstance(made, tuple) else (made, None)
        encoder = self.encoders["shared" if self.agnostic else modality]
        assert isinstance(encoder, Encoder)
        if layer is None:
            return encoder(tokens, mask), None
        return encoder.forward_with_attention(tokens, mask, layer)

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
        """Where the AGG token looks in a clip, mean over heads.

        Args:
            video: As in `encode_video`.
            layer: The block, or `rollout`.

        Returns:
            float `[B, T', H', W']` on the token grid; a row's sum is 1 minus what AGG gives to
            itself.

        Raises:
            RuntimeError: the model is in training mode, where DropToken leaves holes in the grid.
        """
        if self.training:
            raise RuntimeError(
                "agg_attention needs the whole grid of tokens: call model.eval() first"
            )
        attention_BNLL = self._hidden("video", video, layer)[1]
        assert attention_BNLL is not None
        assert self.video_tokens is not None
        return (
            attention_BNLL[:, :, 0, 1:].mean(dim=1).unflatten(1, self.video_tokens.grid_of(video))
        )


def present_rows(batch: Batch, modality: str) -> tuple[Tensor | None, Tensor | None]:
    """Rows of one modality that are there, captions each a row, and the mask that says where.

    Returns:
        Raw input `[rows, …]` and bool `[B]` or, of text, `[B, K]`; None and None for no row at all.
    """
    raw, mask = getattr(batch, modality), getattr(batch, f"{modality}_mask")
    if raw is None or mask is None or not bool(mask.any()):
        return None, None
    return raw.flatten(0, mask.ndim - 1) if bool(mask.all()) else raw[mask], mask


def no_row(num_clips: int, modality: str, device: torch.device) -> Tensor:
    """The mask of a modality that no clip has: bool `[B]` or, of text, `[B, 1]`."""
    shape = (num_clips, 1) if modality == "text" else (num_clips,)
    return torch.zeros(shape, dtype=torch.bool, device=device)


def place_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Puts computed rows where the mask is True: `[rows, …]` → `[*mask.shape, …]`, else zeros."""
    if len(values) == mask.numel():
        return values.unflatten(0, mask.shape)
    full = values.new_zeros(*mask.shape, *values.shape[1:])
    return full.masked_scatter(mask.reshape(*mask.shape, *[1] * (values.ndim - 1)), values)


def backbone_and_head(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of a network in its two parts: what makes the features, and what uses them."""
    named = list(network.named_parameters())
    backbone = [parameter for name, parameter in named if not name.startswith(HEAD_PREFIXES)]
    head = [parameter for name, parameter in named if name.startswith(HEAD_PREFIXES)]
    return backbone, head
