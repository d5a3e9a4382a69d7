"""Common spaces of video, audio and text, and the directions of retrieval in them."""

from typing import Literal, get_args

from vatt.config.model import VATTConfig

Direction = Literal["text_to_video", "video_to_text", "audio_to_video", "video_to_audio"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Space = Literal["va", "vt", "joint"]


def spaces_of(config: VATTConfig, modality: str) -> tuple[Space, ...]:
    """Common spaces of a modality; empty for a model without a head.

    Audio enters the video-text space through the last step of the video head.
    """
    has = config.modalities
    if modality not in has or config.head is None:
        return ()
    if config.head.kind == "joint":
        return ("joint",)
    if modality == "text":
        return ("vt",)
    return ("va", "vt") if "text" in has else ("va",)


def output_widths(config: VATTConfig, modality: str) -> dict[str, int]:
    """Widths of the outputs of a tower: `features`, an embedding per space, and `logits`."""
    widths = {"features": config.feature_width(modality)}
    for space in spaces_of(config, modality):
        widths[space] = getattr(config.head, f"d_{space}")
    if config.classifier is not None and config.classifier.modality == modality:
        widths["logits"] = config.classifier.num_classes
    return widths
