"""Encoding of sources, one vector each, in batches that span several sources."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vatt.errors import MediaError, UserError
from vatt.features.embedder import Embedder, Form

OnError = Literal["raise", "skip"]
Row = tuple[int, Tensor]  # number of its source, input of the model


class EmptyTextError(UserError):
    """A text without any word to encode."""


def encode_sources(
    embedder: Embedder,
    modality: str,
    form: Form,
    sources: Iterable[Any],
    read: Callable[[Any], Iterable[Tensor]],
    *,
    batch_size: int,
    on_error: OnError,
    show_progress: bool,
) -> Tensor:
    """Encodes sources of one modality.

    Args:
        embedder: The model.
        modality: `video`, `audio` or `text`.
        form: Kind of vectors.
        sources: Sources in order; they are read lazily.
        read: Reads the rows of a source as inputs of the model.
        batch_size: Rows per batch.
        on_error: "raise", or "skip" to warn of a source that cannot be read.
        show_progress: Whether to show a progress bar.

    Returns:
        float32 `[N, …]`, the mean over the rows of each source; NaN for skipped sources.

    Raises:
        UserError: no source, or an option that is not valid.
    """
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    sums: dict[int, Tensor] = {}
    counts: Counter[int] = Counter()
    failed: set[int] = set()
    num_sources = 0
    raw_form = replace(form, normalize=False)
    batch: list[Row] = []
    total = len(sources) if isinstance(sources, list | tuple) else None
    with tqdm(total=total, disable=not show_progress, unit=modality) as bar:
        for number, source in enumerate(sources):
            num_sources += 1
            try:
                for row in read(source):
                    batch.append((number, row))
                    counts[number] += 1
                    if len(batch) == batch_size:
                        _add_vectors(sums, batch, embedder, modality, raw_form)
                        batch = []
            except (MediaError, EmptyTextError) as error:
                if on_error == "raise":
                    raise
                failed.add(number)
                warnings.warn(f"skipped: {error}", stacklevel=4)  # of FeatureExtractor.encode_…
            bar.update()
        if batch:
            _add_vectors(sums, batch, embedder, modality, raw_form)
    if not num_sources:
        raise UserError(f"nothing to encode: no {modality} was given")
    table = torch.full((num_sources, *embedder.shape(modality, form)), torch.nan)
    for number in sums.keys() - failed:
        mean = sums[number] / counts[number]
        table[number] = F.normalize(mean, dim=-1) if form.normalize and not form.tokens else mean
    return table


def _add_vectors(
    sums: dict[int, Tensor], batch: list[Row], embedder: Embedder, modality: str, form: Form
) -> None:
    """Adds the vectors of a batch to the sums of their sources."""
    raw = torch.stack([row for _, row in batch])
    vectors = embedder.embed(modality, raw, [form])[0]
    for (number, _), vector in zip(batch, vectors, strict=True):
        sums[number] = sums.get(number, 0) + vector
