"""Common spaces of video, audio and text, and the directions of retrieval in them."""

from typing import Literal, get_args

from vatt.config.model import VATTConfig

Direction = Literal[
    "text_to_video",
    "video_to_text",
    "audio_to_video",
    "video_to_audio",
    "text_to_audio",
    "audio_to_text",
]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Space = Literal["va", "vt", "joint", "at", "avt"]  # a VATT has the first three
MediaModality = Literal["video", "audio", "video_audio"]  # the last: both as one item
CANDIDATES = {"video": "clips", "audio": "sounds", "text": "captions"}


def search_size(direction: str, num_queries: float, num_candidates: float) -> str:
    """Size of a search and the R@1 of guessing, such as `4 queries among 13 clips, chance 7.69 %`.

    Args:
        direction: Such as `text_to_video`.
        num_queries: Number of queries.
        num_candidates: Number of candidates; a mean if galleries differ in size.
    """
    query = "query" if num_queries == 1 else "queries"
    among = f"{num_candidates:,.0f} {CANDIDATES[direction.rpartition('_')[2]]}"
    return f"{num_queries:,.0f} {query} among {among}, chance {100 / num_candidates:.3g} %"


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
