"""Open models that embed two or three modalities in common spaces: CLIP, SigLIP, CLAP, PE-AV."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.open_model import OpenModelConfig
from vatt.encoders.pe_av import before_last_norm
from vatt.encoders.transformers_loading import load_timm
from vatt.open_models.inputs import Pictures, Sound
from vatt.open_models.network import OpenModel, Scale, load_model, pooled
from vatt.open_models.settings import read_processor
from vatt.open_models.tokenizer import PretrainedTokenizer


class WholeModel(OpenModel):
    """Common part of the networks around one transformers model.

    Args:
        config: Settings with a `source`.
    """

    def __init__(self, config: OpenModelConfig) -> None:
        super().__init__(config)
        assert config.source is not None
        self.model = load_model(config.source)
        if "text" in config.modalities:
            self.padding = PretrainedTokenizer.from_source(config.source).padding

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype


class PictureTextModel(WholeModel):
    """CLIP and its like: a clip is the mean of the unit vectors of its frames.

    Source: Luo et al., "CLIP4Clip", 2021, mean pooling.
    """

    UNUSED = ("model.logit_scale", "model.logit_bias")

    def __init__(self, config: OpenModelConfig) -> None:
        super().__init__(config)
        vision = self.model.config.vision_config
        kind = self.model.config.model_type
        self.spaces = {"video": ("joint",), "text": ("joint",)}
        self.takes_patches = kind == "siglip2"
        patch_size = int(vision.patch_size) if self.takes_patches else None
        assert config.source is not None
        self.pictures = Pictures(read_processor(config.source, "image_processor"), patch_size)

    def encode(self, modality: str, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors of clips or texts; see `OpenModel.encode`."""
        if modality == "text":
            given = None if mask is None else mask.long()
            return pooled(self.model.get_text_features(input_ids=raw, attention_mask=given))
        frames = self.pictures(raw).to(self.dtype)
        each = self._pictures(frames.flatten(0, 1))
        return F.normalize(each, dim=-1).unflatten(0, frames.shape[:2]).mean(dim=1)

    def _pictures(self, frames: Tensor) -> Tensor:
        if not self.takes_patches:
            return pooled(self.model.get_image_features(pixel_values=frames))
        patches = self.pictures.patches(frames)
        side = round(patches.shape[1] ** 0.5)
        return pooled(
            self.model.get_image_features(
                pixel_values=patches,
                pixel_attention_mask=patches.new_ones(patches.shape[:2], dtype=torch.int64),
                spatial_shapes=patches.new_full((len(patches), 2), side, dtype=torch.int64),
            )
        )

    def feature_width(self, modality: str) -> int:
        """Width of the common space."""
        width: int | None = getattr(self.model.config, "projection_dim", None)
        return width or int(self.model.config.text_config.projection_size)

    def scales(self) -> dict[str, Scale]:
        """The model's own logit scale, and SigLIP's bias."""
        bias = getattr(self.model, "logit_bias", None)
        factor = float(self.model.logit_scale.detach().exp())
        return {"video_text": Scale(factor, None if bias is None else float(bias.detach()))}

    @torch.no_grad()
    def set_scales(self, scales: Mapping[str, Scale]) -> None:
        """Sets the logit scale, and the bias if there is one."""
        factor, bias = scales["video_text"]
        self.model.logit_scale.fill_(math.log(factor))
        if bias is not None and hasattr(self.model, "logit_bias"):
            self.model.logit_bias.fill_(bias)


class SoundTextModel(WholeModel):
    """CLAP. Clips longer than its 10 s are cut, not fused."""

    # without longer clips there is nothing to fuse
    UNUSED = ("model.logit_scale_*", "*.mel_conv2d.*", "*.fusion_model.*")

    def __init__(self, config: OpenModelConfig) -> None:
        super().__init__(config)
        assert config.source is not None
        self.spaces = {"audio": ("joint",), "text": ("joint",)}
        self.sound = Sound(config.source)

    def encode(self, modality: str, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors of sounds or texts; see `OpenModel.encode`."""
        if modality == "text":
            given = None if mask is None else mask.long()
            return pooled(self.model.get_text_features(input_ids=raw, attention_mask=given))
        log_mel = self.sound(raw, self.dtype)
        longer = torch.zeros(len(raw), 1, dtype=torch.bool, device=raw.device)
        return pooled(self.model.get_audio_features(input_features=log_mel, is_longer=longer))

    def feature_width(self, modality: str) -> int:
        """Width of the common space."""
        return int(self.model.config.projection_dim)

    def scales(self) -> dict[str, Scale]:
        """The geometric mean of the model's scales of both directions."""
        both = self.model.logit_scale_a.detach() + self.model.logit_scale_t.detach()
        return {"audio_text": Scale(float((both / 2).exp()))}

    @torch.no_grad()
    def set_scales(self, scales: Mapping[str, Scale]) -> None:
        """Sets the scales of both directions."""
        for scale in (self.model.logit_scale_a, self.model.logit_scale_t):
            scale.fill_(math.log(scales["audio_text"].factor))


class AudioVideoTextModel(WholeModel):
    """PE-AV, with its spaces of video and audio, video and text, and audio and text.

    Its encoder of both together is not trained. Its codec has no gradient, as in transformers.
    Texts are pooled before the last norm, as in `vatt.encoders.pe_av`.

    Source: Vyas et al., "Pushing the frontier of audiovisual perception", 2025.
    """

    UNUSED: tuple[str, ...] = (
        "*logit_scale",
        "*logit_bias",
        "*.dac_encoder.*",
        "*.embedder.bottleneck.*",
        "model.text_model.final_norm.*",
        "model.audio_video_encoder.*",
        "model.audio_video_head.*",
        "model.text_audio_video_head.*",
        "model.*_plus_text_head.*",
    )
    # weights of each modality
    PARTS: ClassVar[dict[str, tuple[str, ...]]] = {
        "video": ("model.video_model.video_*",),
        "audio": ("model.audio_model.audio_*",),
        "text": ("model.text_model.*", "model.*.text_video_head.*", "model.*.text_audio_head.*"),
    }
    # names of logit scale and bias by pair
    SCALES: ClassVar[dict[str, str]] = {
        "video_audio": "audio_video_logit",
        "video_text": "video_model.text_video_logit",
        "audio_text": "audio_model.text_audio_logit",
    }

    def __init__(self, config: OpenModelConfig) -> None:
        load_timm()  # its picture tower
        super().__init__(config)
        absent = [name for name in self.PARTS if name not in config.modalities]
        self.UNUSED = (*self.UNUSED, *(one for name in absent for one in self.PARTS[name]))
        assert config.source is not None
        self.spaces = {"video": ("va", "vt"), "audio": ("va", "at"), "text": ("vt", "at")}
        self.pictures = Pictures(read_processor(config.source, "video_processor"))
        self.sound = Sound(config.source)

    def encode(self, modality: str, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors of one modality; those of text are two, beside each other."""
        model = self.model
        if modality == "video":
            frames = self.pictures(raw).to(self.dtype)
            return model.video_model.video_head(pooled(model.video_model.video_encoder(frames)))
        if modality == "audio":
            sound = self.sound(raw, self.dtype)
            return model.audio_model.audio_head(pooled(model.audio_model.audio_encoder(sound)))
        given = None if mask is None else mask.long()
        first = before_last_norm(model.text_model, input_ids=raw, attention_mask=given)[:, 0]
        heads = (model.video_model.text_video_head, model.audio_model.text_audio_head)
        return torch.cat([head(first) for head in heads], dim=1)

    def feature_width(self, modality: str) -> int:
        """Width of all spaces of a modality."""
        width = int(self.model.config.text_config.hidden_size)
        return 2 * width if modality == "text" else width

    def split(self, modality: str, rows: Tensor) -> dict[str, Tensor]:
        """Embeddings by space; video and audio have the same in both."""
        if modality == "text":
            return super().split(modality, rows)
        return dict.fromkeys(self.spaces[modality], rows)

    def scales(self) -> dict[str, Scale]:
        """The model's own scales and biases, where a scale is above zero."""
        found = {
            pair: Scale(
                float(self.model.get_parameter(f"{name}_scale").detach()),
                float(self.model.get_parameter(f"{name}_bias").detach()),
            )
            for pair, name in self.SCALES.items()
        }
        return {pair: scale for pair, scale in found.items() if scale.factor > 0}

    @torch.no_grad()
    def set_scales(self, scales: Mapping[str, Scale]) -> None:
        """Sets scales and biases of the pairs that were trained."""
        for pair, scale in scales.items():
            self.model.get_parameter(f"{self.SCALES[pair]}_scale").fill_(scale.factor)
            if scale.bias is not None:
                self.model.get_parameter(f"{self.SCALES[pair]}_bias").fill_(scale.bias)
