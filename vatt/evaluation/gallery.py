"""Clips of a set as a report shows them: media, similarities, common spaces and attention."""

import textwrap
from collections.abc import Sequence
from typing import Any

import torch

from vatt.config.geometry import MODALITIES
from vatt.data.clips import media_of
from vatt.data.samples import RetrievalSamples
from vatt.errors import MediaError
from vatt.evaluation.embedding_table import EmbeddingTable, similarities
from vatt.network.model import VATT
from vatt.pages.players import read_window
from vatt.pages.report_data import AttentionExample, ReportClip
from vatt.system.progress import progress_bar

SHORT_SIDE = 160  # pixels of a clip in the page, or fewer
NUM_ATTENTION = 6  # clips whose attention the report shows
MAX_CAPTION = 240  # characters of a caption in the page; a transcript may have thousands


def gallery_parts(
    model: VATT,
    samples: RetrievalSamples,
    rows: Sequence[int],
    table: EmbeddingTable,
    *,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Fields of `ReportData` about some clips: `clips`, `similarity`, `spaces` and `attention`.

    Args:
        model: Model in evaluation mode.
        samples: Set of the clips.
        rows: Rows of the set.
        table: Embeddings of these rows by the model.
        show_progress: Whether to show a progress bar.
    """
    slots = table.text_mask.int().argmax(dim=1).tolist()
    pairs = progress_bar(
        list(zip(rows, slots, strict=True)), "clips of the page", unit="clip", show=show_progress
    )
    return {
        "clips": [report_clip(samples, row, slot) for row, slot in pairs],
        "similarity": {name: values.numpy() for name, values in similarities(table).items()},
        "spaces": space_points(
            table, is_joint=model.config.head is not None and model.config.head.kind == "joint"
        ),
        "attention": attention_examples(model, samples, rows, table),
    }


def report_clip(samples: RetrievalSamples, row: int, slot: int = 0) -> ReportClip:
    """The window of a record that the model reads, encoded small, with one of its captions."""
    record, start_seconds, captions = samples.place(row)
    title = str(record.metadata.get("file", record.key))
    if start_seconds >= 1:
        title += f" at {int(start_seconds // 60)}:{int(start_seconds % 60):02d}"
    media = None
    try:
        with media_of(record) as source:
            end_seconds = start_seconds + samples.geometry.window_seconds
            media = read_window(source, start_seconds, end_seconds, SHORT_SIDE).encode()
    except MediaError:
        pass  # what the model read was whole: the page shows the clip without its media
    caption = captions[slot] if slot < len(captions) else ""
    return ReportClip(
        title=title,
        caption=textwrap.shorten(caption, MAX_CAPTION, placeholder=" …"),
        media=media,
    )


def space_points(table: EmbeddingTable, *, is_joint: bool) -> dict[str, dict[str, Any]]:
    """Embeddings float32 `[n, D]` by common space and modality; the first caption of each clip."""
    texts, _ = table.first_texts()
    points: dict[str, dict[str, Any]] = {}
    for space, shown in (("vt", "joint"),) if is_joint else (("va", "va"), ("vt", "vt")):
        arrays = {name: getattr(table, f"{name}_{space}", None) for name in MODALITIES}
        arrays["text"] = texts if space == "vt" else None
        known = {name: array.numpy() for name, array in arrays.items() if array is not None}
        if len(known) > 1:
            points[shown] = known
    return points


def attention_examples(
    model: VATT, samples: RetrievalSamples, rows: Sequence[int], table: EmbeddingTable
) -> list[AttentionExample]:
    """Attention of the AGG token in some clips with a picture, evenly spaced."""
    if "video" not in model.config.modalities:
        return []
    shown = [row for row, has in zip(rows, table.video_mask.tolist(), strict=True) if has]
    stride = max(1, len(shown) // NUM_ATTENTION)
    device = next(model.parameters()).device
    examples = []
    for row in shown[stride // 2 :: stride][:NUM_ATTENTION]:
        sample = samples[row]
        if sample.video is None:
            continue
        with torch.no_grad():
            weights = model.agg_attention(sample.video[None].to(device))[0]
        record, _, _ = samples.place(row)
        examples.append(
            AttentionExample(
                title=str(record.metadata.get("file", record.key)),
                frames=sample.video.numpy(),
                attention=weights.float().cpu().numpy(),
            )
        )
    return examples
