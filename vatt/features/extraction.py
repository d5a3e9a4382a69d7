"""Extraction from many inputs: worker processes read them, this process encodes and stores.

Stored features are kept; unreadable inputs are reported. A batch contains windows of one input
only, so the result does not depend on other inputs, on the number of processes or on interruptions.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vatt.config.options import ExtractOptions
from vatt.errors import Fault, MediaError, ShardError, UserError, fault_lines
from vatt.features.extractor import FeatureExtractor
from vatt.features.files import WindowTable
from vatt.features.inputs import Item
from vatt.features.media_places import describe_media
from vatt.features.spread import Spread
from vatt.features.stores import FileStore, ParquetStore
from vatt.media.clip import Clip
from vatt.media.reader_process import LIMIT_SECONDS, prepare_worker
from vatt.media.source import FileRange
from vatt.preprocess.arrays import read_duration
from vatt.preprocess.windows import WindowPlan, plan_windows
from vatt.system.machine import num_cores
from vatt.system.progress import progress_bar
from vatt.system.workers import results_in_order, tell_alive

LEAST_CORES = 2  # with more, a core is left to read while the model computes on the CPU
FORMAT_VERSION = 1  # of the files; another one makes them anew


@dataclass
class ExtractReport:
    """Report of an extraction.

    Args:
        num_extracted: Number of inputs whose features this run extracted.
        num_replaced: Number of inputs among these whose features had been made by another model or
            with other settings.
        num_present: Number of inputs whose features were already in the folder.
        num_windows: Number of encoded windows.
        seconds: Duration of the extraction.
        failures: Failed inputs by name, with the reason.
        spreads: Spread of the vectors that this run made, by array; none of tokens.
    """

    num_extracted: int = 0
    num_replaced: int = 0
    num_present: int = 0
    num_windows: int = 0
    seconds: float = 0.0
    failures: list[Fault] = field(default_factory=list)
    spreads: dict[str, Spread] = field(default_factory=dict)

    @property
    def num_inputs(self) -> int:
        """Number of inputs that are done so far."""
        return self.num_extracted + self.num_present + len(self.failures)

    def __str__(self) -> str:
        """Counts on one line, then the first failures."""
        replaced = f", {self.num_replaced} of them in place of others" if self.num_replaced else ""
        counts = (
            f"{self.num_extracted} made ({self.num_windows} windows in {self.seconds:.0f} s)"
            f"{replaced}, "
            f"{self.num_present} were there, {len(self.failures)} failed"
        )
        return "\n".join([counts, *fault_lines(self.failures)])


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some windows of an input, which are read together.

    Args:
        item: The input.
        stamp: Stamp of the input's content.
        media: The file to read.
        plan: Positions and geometry of windows.
        count: Maximum number of windows.
        starts: Starts of the windows. None: the first windows of a file of unknown length.
    """

    item: Item
    stamp: str
    media: str | FileRange
    plan: WindowPlan
    count: int
    starts: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PartRead:
    """Windows of a part, and the length of the file (0 except with the first part)."""

    duration_seconds: float
    clips: list[Clip]


def read_part(part: Part) -> PartRead | Fault:
    """Reads windows, in a worker process."""
    try:
        duration_seconds = read_duration(part.media) if part.starts is None else 0.0
        starts = part.starts
        if starts is None:
            starts = tuple(part.plan.sliding_starts(duration_seconds)[: part.count])
        clips = []
        for start in starts:
            clips.append(part.plan.read(part.media, start))
            tell_alive()
    except MediaError as error:
        return Fault(part.item.name, error.reason)
    except MemoryError:
        return Fault(
            part.item.name, "needs more memory to be read than there is: copy or encode it again"
        )
    return PartRead(duration_seconds, clips)


class PartQueue:
    """Queue of parts to read; parts of a file already begun come before new files.

    The length of a file is known from its first part, so parts are added while others are read.
    `results_in_order` keeps asking for items as long as results arrive.

    Args:
        first_parts: The first part of each file.
    """

    def __init__(self, first_parts: Iterator[Part]) -> None:
        self._first_parts = first_parts
        self.further: deque[Part] = deque()
        self.in_work: deque[Part] = deque()  # in the order of their results

    def __iter__(self) -> Iterator[Part]:
        """Itself."""
        return self

    def __next__(self) -> Part:
        """Next part, which then counts as being read."""
        part = self.further.popleft() if self.further else next(self._first_parts)
        self.in_work.append(part)
        return part


class Extraction:
    """Extraction of features into a folder.

    Args:
        extractor: The model.
        out: Folder for the results; created if missing.
        options: Windows and vectors.
        model: Location of the model, which is recorded in the results.

    Raises:
        UserError: the options do not fit the model, each other, or the folder.
    """

    def __init__(
        self, extractor: FeatureExtractor, out: Path, options: ExtractOptions, model: str = ""
    ) -> None:
        self._embedder = extractor.embedder
        encoder = extractor.encoder
        modalities = options.modalities or encoder.media_modalities
        self._forms = self._embedder.forms(
            modalities, options.space, options.return_tokens, options.normalize
        )
        parts = dict.fromkeys(part for form in self._forms for part in form.parts)
        self._plan = plan_windows(encoder, parts, options.window_seconds, options.hop_seconds)
        self._options, self._model = options, model
        self._store = self._open_store(out)

    def _open_store(self, out: Path) -> FileStore | ParquetStore:
        settings, replaces = self._settings(), self._options.replace
        if self._options.file_format != "parquet":
            suffix = f".{self._options.file_format}"
            return FileStore(out, suffix, settings, replace=replaces)
        if self._options.return_tokens:
            raise UserError("a parquet data set holds no tokens: choose npz or safetensors")
        widths = {form.name: self._embedder.shape(form)[0] for form in self._forms}
        return ParquetStore(out, widths, settings, replace=replaces)

    def _settings(self) -> str:
        """All settings that the vectors depend on, as JSON."""
        values = {
            "format_version": FORMAT_VERSION,
            "model": self._embedder.encoder.digest(),
            "dtype": str(self._embedder.encoder.dtype).removeprefix("torch."),
            "arrays": {
                form.name: {key: value for key, value in asdict(form).items() if key != "modality"}
                for form in self._forms
            },
            "window_seconds": self._plan.window_seconds,
            "hop_seconds": self._plan.hop_seconds,
        }
        return json.dumps(values, sort_keys=True)

    def prepare(self, items: Sequence[Item]) -> None:
        """Removes outdated and half-written results; one process calls this before any writes."""
        self._store.clean(items)

    def run(self, items: Sequence[Item], show_progress: bool = False) -> ExtractReport:
        """Extracts missing features; if interrupted, complete results are kept."""
        began = time.monotonic()
        report = ExtractReport()
        queue = PartQueue(self._missing(items, report))
        tables: dict[str, WindowTable] = {}  # of files that are begun
        workers = self._options.num_workers
        with (
            closing(self._store),
            progress_bar(None, "extract", len(items), unit="file", show=show_progress) as bar,
            results_in_order(
                read_part,
                queue,
                num_workers=workers,
                limit_seconds=LIMIT_SECONDS,
                prepare=prepare_worker,
                most_ahead=2 * workers if self._overlaps() else 1,
            ) as results,
        ):
            for result in results:
                part = queue.in_work.popleft()
                name, is_first = part.item.name, part.starts is None
                if is_first and isinstance(result, PartRead):
                    tables[name] = WindowTable(self._plan, result.duration_seconds)
                    further = tables[name].batches(part.count)[1:]
                    queue.further += (replace(part, starts=tuple(starts)) for starts in further)
                if isinstance(result, PartRead) and name in tables:
                    self._encode(part, result.clips, tables, report)
                elif not isinstance(result, PartRead) and (is_first or name in tables):
                    report.failures.append(Fault(name, result.reason))
                    tables.pop(name, None)
                    queue.further = deque(p for p in queue.further if p.item.name in tables)
                bar.update(report.num_inputs - bar.n)
            bar.update(report.num_inputs - bar.n)
        report.seconds = time.monotonic() - began
        report.num_replaced = self._store.num_replaced
        return report

    def _overlaps(self) -> bool:
        """Whether files are read while the model computes.

        On two cores, both would wait for each other, because a matrix product on two threads is as
        slow as the slower thread.
        """
        return self._embedder.encoder.device.type != "cpu" or num_cores() > LEAST_CORES

    def _missing(self, items: Sequence[Item], report: ExtractReport) -> Iterator[Part]:
        """The first part of each input without stored features."""
        for item in items:
            try:
                media, stamp = item.locate()
            except (MediaError, ShardError) as error:
                report.failures.append(Fault(item.name, getattr(error, "reason", str(error))))
                continue
            if self._store.holds(item.name, stamp):
                report.num_present += 1
                continue
            count = self._options.batch_size
            yield Part(item=item, stamp=stamp, media=media, plan=self._plan, count=count)

    def _encode(
        self,
        part: Part,
        clips: list[Clip],
        tables: dict[str, WindowTable],
        report: ExtractReport,
    ) -> None:
        """Encodes the windows of a part, and stores the features of a file that is complete."""
        table = tables[part.item.name]
        arrays = self._embedder.embed_clips(clips, self._forms)
        table.add(clips, arrays)
        for name, rows in arrays.items():
            if rows.ndim == 2:  # tokens have three axes
                report.spreads[name] = report.spreads.get(name, Spread()).add(rows)
        report.num_windows += len(clips)
        if table.is_complete:
            origin = describe_media(part.media) | {"model": self._model}
            self._store.write(part.item.name, part.stamp, table.features(origin))
            del tables[part.item.name]
            report.num_extracted += 1
