"""VATT: one transformer for the three modalities, or one each, with contrastive heads.

Source: Akbari et al., NeurIPS 2021, section 3; google-research/vatt `modeling`. Shape legend in
`vatt.batch`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.batch import Batch
from vatt.config import VATTConfig
from vatt.heads import FACHead
from vatt.layers import Encoder, init_dense, init_fused_projections
from vatt.tokens import PatchTokens, WordTokens


@dataclass(kw_only=True)
class VATTOutput:
    """What the model makes of a batch.

    Modalities that the batch lacks have no entry; rows that a mask excludes are zeros.

    Args:
        features: Pooled AGG features: `video` and `audio` float `[B, D]`, `text` float `[B, K, D]`.
        embeddings: In the common spaces, not normalised: `video_va`, `audio_va` float32 `[B,
            d_va]`, `video_vt` float32 `[B, d_vt]`, `text_vt` float32 `[B, K, d_vt]`.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)


class VATT(nn.Module):
    """Video-Audio-Text Transformer.

    Args:
        config: Sizes and arrangement; `vatt.preset` has the published ones.
    """

    def __init__(self, config: VATTConfig) -> None:
        super().__init__()
        self.config = config
        agnostic = config.arrangement == "agnostic"
        self.video_tokens = self._patch_tokens("video", agnostic)
        self.audio_tokens = self._patch_tokens("audio", agnostic)
        text = config.tower("text")
        self.text_tokens = WordTokens(
            config.text, text.d_model, agnostic=agnostic, dropout=text.dropout
        )
        self.encoders = nn.ModuleDict(self._encoders(agnostic))
        self.post_projections = nn.ModuleDict(
            {name: nn.Linear(text.d_model, config.d_post) for name in ("video", "audio", "text")}
            if agnostic
            else {}
        )
        self.head = FACHead(
            config.head, *(self.feature_width(m) for m in ("video", "audio", "text"))
        )
        self.apply(init_dense)
        self.apply(init_fused_projections)

    def _patch_tokens(self, modality: str, agnostic: bool) -> PatchTokens:
        config, encoder = self.config, self.config.tower(modality)
        drop_token = config.drop_token
        if modality == "audio" and config.audio_drop_token is not None:
            drop_token = config.audio_drop_token
        return PatchTokens(
            config.video if modality == "video" else config.audio,
            encoder.d_model,
            agnostic=agnostic,
            drop_token=drop_token,
            dropout=encoder.dropout,
        )

    def _encoders(self, agnostic: bool) -> dict[str, Encoder]:
        config = self.config
        if agnostic:
            return {"shared": Encoder(config.encoder)}
        text = Encoder(
            config.tower("text"),
            t5=True,
            relative_buckets=config.text.relative_buckets,
            relative_max_distance=config.text.relative_max_distance,
        )
        return {
            "video": Encoder(config.tower("video")),
            "audio": Encoder(config.tower("audio")),
            "text": text,
        }

    def feature_width(self, modality: str) -> int:
        """Width of a modality's pooled features."""
        if self.config.arrangement == "agnostic":
            return self.config.d_post
        return self.config.tower(modality).d_model

    def encode_video(self, video: Tensor) -> Tensor:
        """Clips uint8 or float in [-1, 1], `[B, T, H, W, C]` → features float `[B, D]`."""
        return self._encode("video", self.video_tokens(video))

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Waveforms float in [-1, 1], `[B, S]` → pooled features float `[B, D]`."""
        return self._encode("audio", self.audio_tokens(audio))

    def encode_text(self, text: Tensor) -> Tensor:
        """Captions int64 `[B, J]`, 0 = padding → pooled features float `[B, D]`.

        Captions are cut to the longest of them; where none is padded no mask is made.
        """
        longest = max(1, int((text != 0).sum(dim=1).max())) if text.numel() else 1
        tokens, mask = self.text_tokens(text[:, :longest])
        return self._encode("text", tokens, None if bool(mask.all()) else mask)

    def _encode(self, modality: str, tokens_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        encoder = self._encoder(modality)
        pooled = encoder(tokens_BLD, mask_BL)[:, 0]
        if modality in self.post_projections:
            pooled = F.gelu(self.post_projections[modality](pooled))
        return pooled

    def _encoder(self, modality: str) -> Encoder:
        shared = self.config.arrangement == "agnostic"
        encoder = self.encoders["shared" if shared else modality]
        assert isinstance(encoder, Encoder)
        return encoder

    def embed_video(self, video: Tensor) -> dict[str, Tensor]:
        """Clips → `va` float32 `[B, d_va]` and `vt` float32 `[B, d_vt]`, not normalised."""
        return self.head.video(self.encode_video(video))

    def embed_audio(self, audio: Tensor) -> dict[str, Tensor]:
        """Waveforms → `va` float32 `[B, d_va]`, not normalised."""
        return self.head.audio(self.encode_audio(audio))

    def embed_text(self, text: Tensor) -> dict[str, Tensor]:
        """Captions → `vt` float32 `[B, d_vt]`, not normalised."""
        return self.head.text(self.encode_text(text))

    def forward(self, batch: Batch) -> VATTOutput:
        """Encodes what the batch holds; absent rows and empty captions cost nothing."""
        output = VATTOutput()
        self._fill(
            output, "video", batch.video, batch.video_mask, self.encode_video, self.head.video
        )
        self._fill(
            output, "audio", batch.audio, batch.audio_mask, self.encode_audio, self.head.audio
        )
        self._fill(output, "text", batch.text, batch.text_mask, self.encode_text, self.head.text)
        return output

    def _fill(
        self,
        output: VATTOutput,
        modality: str,
        raw: Tensor | None,
        mask: Tensor | None,
        encode: Callable[[Tensor], Tensor],
        embed: Callable[[Tensor], dict[str, Tensor]],
    ) -> None:
        if raw is None or mask is None or not bool(mask.any()):
            return
        everything = bool(mask.all())
        features = encode(raw.flatten(0, mask.ndim - 1) if everything else raw[mask])
        output.features[modality] = self._rows(features, mask, everything)
        for space, embedding in embed(features).items():
            output.embeddings[f"{modality}_{space}"] = self._rows(
                embedding.float(), mask, everything
            )

    @staticmethod
    def _rows(values: Tensor, mask: Tensor, everything: bool) -> Tensor:
        """Puts computed rows where the mask is True: `[rows, D]` → `[*mask.shape, D]`."""
        if everything:
            return values.unflatten(0, mask.shape)
        full = values.new_zeros(*mask.shape, values.shape[-1])
        return full.masked_scatter(mask.unsqueeze(-1), values)

    @torch.no_grad()
    def agg_attention(self, video: Tensor) -> Tensor:
        """Where the AGG token of the last block looks in a clip, mean over heads.

        Args:
            video: As in `encode_video`.

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
        attention_BNLL = self._encoder("video").last_attention(self.video_tokens(video))
        return attention_BNLL[:, :, 0, 1:].mean(dim=1).unflatten(1, self.config.video.grid)
