"""CLIP, SigLIP and SigLIP 2: texts, and video as the mean of its frames."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vatt.encoders.frames import FRAMES, encode_frames
from vatt.encoders.two_towers import JOINT, TwoTowers


class PictureTextEncoder(TwoTowers):
    """CLIP, SigLIP or SigLIP 2 of transformers.

    Args:
        model: `CLIPModel`, `SiglipModel` or `Siglip2Model`.
        processor: Its processor.
        settings: Description of all that the vectors depend on beside the weights.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights stay float32.
    """

    classes: ClassVar[Mapping[str, str]] = {
        "clip": "CLIPModel",
        "siglip": "SiglipModel",
        "siglip2": "Siglip2Model",
    }
    part = "image_processor"
    modalities = ("video", "text")
    video = FRAMES
    audio = None

    def width(self, modality: str, space: str | None) -> int:
        """See `Encoder`."""
        config = self.model.config
        of = config.text_config if modality == "text" else config.vision_config
        if hasattr(config, "projection_dim"):  # CLIP
            return int(config.projection_dim if space == JOINT else of.hidden_size)
        if modality == "text":  # SigLIP's text tower ends in a projection
            return int(of.projection_size)
        return int(of.hidden_size)

    def _encode_media(self, rows: Sequence[Tensor]) -> dict[str | None, Tensor]:
        return encode_frames(rows, self._encode_frames)

    def _encode_frames(self, windows: list[Tensor]) -> dict[str | None, Tensor]:
        """Vectors of the frames of windows, uint8 `[T, H, W, 3]` each, one after the other."""
        prepared = [self._prepare(frames) for frames in windows]
        names = prepared[0].keys()
        inputs = {name: torch.cat([one[name] for one in prepared]) for name in names}
        with self.autocast():
            pooled = self.model.vision_model(**inputs).pooler_output
        return self._vectors("visual", pooled)

    def _prepare(self, frames: Tensor) -> Any:
        """Inputs of the picture tower, on its device."""
        pictures = self.processor.image_processor
        # one that works with Pillow takes no device
        options = (
            {"device": self.device} if getattr(pictures, "backend", "") == "torchvision" else {}
        )
        return pictures(
            images=list(frames.numpy()),
            input_data_format="channels_last",
            return_tensors="pt",
            **options,
        ).to(self.device)
