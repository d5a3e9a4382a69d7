"""Pre-trained encoders of single modalities with our heads."""

from typing import Any

import torch
from torch import Tensor, nn

from vatt.config.open_model import OpenModelConfig
from vatt.network.heads import FACHead, JointHead
from vatt.network.layers import init_weights
from vatt.open_models.inputs import Pictures, Sound
from vatt.open_models.network import OpenModel, load_model
from vatt.open_models.settings import read_processor
from vatt.open_models.tokenizer import PretrainedTokenizer

# models whose pooled vector was trained with them; of others the mean over tokens is taken
POOLED = (
    "audio-spectrogram-transformer",
    "chinese_clip_vision_model",
    "clap_audio_model",
    "clip_text_model",
    "clip_vision_model",
    "clap_text_model",
    "dinov2",
    "siglip_text_model",
    "siglip_vision_model",
)
PARTS = {"video": "vision_model", "audio": "audio_model", "text": "text_model"}
# draws that differ between ranks, or come from NumPy: SpecAugment and LayerDrop
OFF = {"apply_spec_augment": False, "layerdrop": 0.0}


class Towers(OpenModel):
    """Encoders of video, audio and text, and our heads on their pooled features.

    Args:
        config: Settings with `towers` and `head`.
    """

    UNUSED: tuple[str, ...] = (
        "*.masked_spec_embed",
        "*.mask_token",
        "*.mel_conv2d.*",
        "*.fusion_model.*",
    )

    def __init__(self, config: OpenModelConfig) -> None:
        super().__init__(config)
        assert config.towers is not None
        assert config.head is not None
        sources = config.towers.sources
        towers: dict[str, Any] = {n: _tower(n, sources[n]) for n in config.modalities}
        self.towers = nn.ModuleDict(towers)
        self.widths = {name: _width(tower) for name, tower in towers.items()}
        kind = FACHead if config.head.kind == "fac" else JointHead
        self.head = kind(config.head, self.widths)
        self.head.apply(init_weights)
        without = [name for name, tower in towers.items() if not _has_pooler(tower)]
        self.UNUSED = (*self.UNUSED, *(f"towers.{name}.pooler.*" for name in without))
        if "video" in towers:
            self.pictures = Pictures(read_processor(sources["video"], "image_processor"))
        if "audio" in towers:
            self.sound = Sound(sources["audio"])
        if "text" in towers:
            self.padding = PretrainedTokenizer.from_source(sources["text"]).padding

    def encode(self, modality: str, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pooled features of a tower; see `OpenModel.encode`."""
        tower: Any = self.towers[modality]
        dtype = next(tower.parameters()).dtype
        if modality == "audio":
            sound = self.sound(raw, dtype)
            if tower.config.model_type == "clap_audio_model":
                longer = torch.zeros(len(raw), 1, dtype=torch.bool, device=raw.device)
                return self._pooled(tower, tower(input_features=sound, is_longer=longer))
            return self._pooled(tower, tower(sound))
        if modality == "text":
            given = None if mask is None else mask.long()
            return self._pooled(tower, tower(input_ids=raw, attention_mask=given), mask)
        frames = self.pictures(raw).to(dtype)
        if _takes_clips(tower):
            return self._pooled(tower, tower(pixel_values=frames))
        each = self._pooled(tower, tower(pixel_values=frames.flatten(0, 1)))
        return each.unflatten(0, frames.shape[:2]).mean(dim=1)

    def feature_width(self, modality: str) -> int:
        """Width of a tower's features."""
        return self.widths[modality]

    def _pooled(self, tower: Any, output: Any, mask: Tensor | None = None) -> Tensor:
        """Pooled vector of the model, else the mean over tokens that are no padding."""
        if _has_pooler(tower):
            return output.pooler_output
        tokens = output.last_hidden_state
        if mask is None:
            return tokens.mean(dim=1)
        share = mask.to(tokens.dtype) / mask.sum(dim=1, keepdim=True)
        return (tokens * share[..., None]).sum(dim=1)


def _tower(modality: str, source: str) -> Any:
    """Encoder of one modality; of a whole model, such as CLIP, that part."""
    model = load_model(source)
    tower = getattr(model, PARTS[modality], model)
    for name, value in OFF.items():
        if hasattr(tower.config, name):
            setattr(tower.config, name, value)
    return tower


def _has_pooler(tower: Any) -> bool:
    return tower.config.model_type in POOLED


def _takes_clips(tower: Any) -> bool:
    return getattr(tower.config, "num_frames", None) is not None


def _width(tower: Any) -> int:
    return int(tower.config.hidden_size)
