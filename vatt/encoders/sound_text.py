"""CLAP: texts and sound."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vatt.config.geometry import AudioWindow
from vatt.encoders.two_towers import JOINT, TwoTowers


class SoundTextEncoder(TwoTowers):
    """CLAP of transformers.

    Windows are as long as the model hears at once. A shorter sound is not padded with zeros but
    left to the processor, which repeats it as in training.

    Args:
        model: `ClapModel`.
        processor: Its processor.
        settings: Description of all that the vectors depend on beside the weights.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights stay float32.
    """

    classes: ClassVar[Mapping[str, str]] = {"clap": "ClapModel"}
    part = "feature_extractor"
    modalities = ("audio", "text")
    video = None

    def __init__(
        self,
        model: Any,
        processor: Any,
        settings: bytes = b"",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(model, processor, settings, device, dtype)
        self.audio = whole_windows(processor.feature_extractor)

    def width(self, modality: str, space: str | None) -> int:
        """See `Encoder`."""
        config = self.model.config
        of = config.text_config if modality == "text" else config.audio_config
        return int(config.projection_dim if space == JOINT else of.hidden_size)

    def _encode_media(self, rows: Sequence[Tensor]) -> dict[str | None, Tensor]:
        prepare = self.processor.feature_extractor
        inputs = prepare(
            [row.numpy() for row in rows],
            sampling_rate=prepare.sampling_rate,
            return_tensors="pt",
        )
        sound = inputs["input_features"].float().to(self.device)
        with self.autocast():
            pooled = self.model.audio_model(sound, is_longer=none_longer(inputs)).pooler_output
        return self._vectors("audio", pooled)


def whole_windows(extractor: Any) -> AudioWindow:
    """Windows of all that a `ClapFeatureExtractor` takes without cutting at random."""
    return AudioWindow(
        num_samples=int(extractor.nb_max_samples),
        sample_rate=int(extractor.sampling_rate),
        most_seconds=extractor.nb_max_samples / extractor.sampling_rate,
        is_padded=False,
    )


def none_longer(inputs: Any) -> Tensor:
    """Statement for the model that no sound is longer than a window, bool `[N, 1]`.

    A fusion model's processor says of one sound of each batch, drawn at random, that it is longer,
    so that in training all weights are used.
    """
    return torch.zeros_like(inputs["is_longer"], dtype=torch.bool)
