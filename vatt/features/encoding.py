"""Sources one after the other → their vectors, in batches that go across sources."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vatt.errors import MediaError, UserError
from vatt.features.embedder import Embedder, Form, coverage_of
from vatt.media.source import source_name
from vatt.preprocess.arrays import Frames, Media, read_duration
from vatt.preprocess.windows import WindowPlan

OnError = Literal["raise", "skip"]
Item = TypeVar("Item")


class EmptyTextError(UserError):
    """A text without words says nothing that could be encoded."""


@dataclass
class Encoding:
    """One pass over sources of one modality.

    Args:
        embedder: What encodes.
        modality: `video`, `audio` or `text`.
        form: Of the vectors.
        batch_size: Rows encoded at a time.
        on_error: What is done about a source that cannot be read.
        show_progress: Whether to draw a bar.
    """

    embedder: Embedder
    modality: str
    form: Form
    batch_size: int
    on_error: OnError
    show_progress: bool
    _sums: dict[int, Tensor] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict)
    _failed: set[int] = field(default_factory=set)
    _num_sources: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        if self.on_error not in ("raise", "skip"):
            raise UserError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")

    def run(
        self, sources: Iterable[Any], read: Callable[[Any], Iterable[Tensor]], total: int | None
    ) -> Tensor:
        """The mean over the rows of each source.

        Args:
            sources: In order; read as they are needed.
            read: Rows of a source, as the model takes them.
            total: How many sources there are, if that is known.

        Returns:
            float32 `[N, …]`; NaN for sources that were skipped.

        Raises:
            UserError: no source.
        """
        raw_form = Form(space=self.form.space, tokens=self.form.tokens, normalize=False)
        with tqdm(total=total, disable=not self.show_progress, unit=self.modality) as bar:
            for batch in batched(self._rows(sources, read, bar), self.batch_size):
                raw = torch.stack([row for _, row in batch])
                values = self.embedder.embed(self.modality, raw, [raw_form])[0]
                for (number, _), value in zip(batch, values, strict=True):
                    self._sums[number] = self._sums.get(number, 0) + value
                    self._counts[number] = self._counts.get(number, 0) + 1
        if not self._num_sources:
            raise UserError(f"nothing to encode: no {self.modality} was given")
        return self._table()

    def _rows(
        self, sources: Iterable[Any], read: Callable[[Any], Iterable[Tensor]], bar: Any
    ) -> Iterator[tuple[int, Tensor]]:
        """Rows with the numbers of their sources; faults are raised or noted."""
        for number, source in enumerate(sources):
            self._num_sources += 1
            try:
                for row in read(source):
                    yield number, row
            except (MediaError, EmptyTextError) as error:
                if self.on_error == "raise":
                    raise
                self._failed.add(number)
                warnings.warn(f"skipped: {error}", stacklevel=4)
            bar.update()

    def _table(self) -> Tensor:
        shape = self.embedder.shape(self.modality, self.form)
        table = torch.full((self._num_sources, *shape), torch.nan)
        for number in self._sums.keys() - self._failed:
            mean = self._sums[number] / self._counts[number]
            unit = self.form.normalize and not self.form.tokens
            table[number] = F.normalize(mean, dim=-1) if unit else mean
        return table


def windows_of(media: Media, modality: str, plan: WindowPlan, count: int) -> Iterator[Tensor]:
    """A few windows that are spread over a source, without those in which there is nothing.

    Raises:
        MediaError: the source cannot be read, or none of the windows has anything.
    """
    found = False
    for start in plan.spread_starts(read_duration(media), count):
        clip = plan.read(media, start)
        if coverage_of(clip, modality) > 0:
            found = True
            yield getattr(clip, modality)
    if not found and not isinstance(media, Frames):  # those have a picture in every window
        what = "picture" if modality == "video" else "sound"
        raise MediaError(
            source_name(media), f"has no {what} in any of its windows: raise num_windows"
        )


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    remaining = iter(items)
    while part := list(itertools.islice(remaining, size)):
        yield part
