"""Features of many inputs: read by worker processes, encoded here, kept one by one.

What is there already is left alone, what cannot be read is noted and passed over. The windows of an
input are encoded in batches of their own, so that nothing of the result depends on what else is
extracted, in how many processes, or whether a run was interrupted.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from vatt.config.spaces import Space
from vatt.errors import MediaError, ShardError, UserError
from vatt.features.embedder import Form
from vatt.features.extractor import FeatureExtractor, media_modalities
from vatt.features.files import WindowTable
from vatt.features.inputs import Item
from vatt.features.media_places import describe_media
from vatt.features.stores import FileStore, ParquetStore
from vatt.media.clip import Clip
from vatt.media.reader_process import LIMIT_SECONDS, prepare_worker
from vatt.media.source import FileRange
from vatt.models.checkpoint import weights_digest
from vatt.preprocess.arrays import read_duration
from vatt.preprocess.windows import WindowPlan, plan_windows
from vatt.system.machine import num_cores
from vatt.system.workers import Lost, results_in_order, tell_alive

LEAST_CORES = 2  # with more, a core is left to read while the model computes on the CPU
FORMAT_VERSION = 1  # of the files; another one makes them anew
SHOWN_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What is extracted, and how it is kept.

    Args:
        window_seconds: As of `FeatureExtractor.extract`.
        hop_seconds: As there.
        modalities: As there.
        space: As there.
        return_tokens: As there.
        normalize: As there.
        batch_size: Windows read and encoded at a time.
        num_workers: Processes that read; 0: this one, where a file that hangs holds up all.
        file_format: One file an input, or a data set for all.
    """

    window_seconds: float | None = None
    hop_seconds: float | None = None
    modalities: tuple[str, ...] | None = None
    space: Space | Literal["all"] | None = "all"
    return_tokens: bool = False
    normalize: bool = True
    batch_size: int = 8
    num_workers: int = 1
    file_format: Literal["npz", "safetensors", "parquet"] = "npz"


@dataclass
class ExtractReport:
    """What became of the inputs.

    Args:
        num_made: Inputs whose features were made.
        num_there: Inputs whose features were there.
        num_windows: Windows encoded.
        seconds: Time that it took.
        failures: Name and reason of the others.
    """

    num_made: int = 0
    num_there: int = 0
    num_windows: int = 0
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A few lines."""
        lines = [
            f"{self.num_made} made ({self.num_windows} windows in {self.seconds:.0f} s), "
            f"{self.num_there} were there, {len(self.failures)} failed"
        ]
        shown = list(self.failures.items())[:SHOWN_FAILURES]
        lines += [f"  {name}: {reason}" for name, reason in shown]
        if len(self.failures) > len(shown):
            lines.append(f"  … and {len(self.failures) - len(shown)} more")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some windows of an input, to be read at a time.

    Args:
        item: The input.
        stamp: Of its content.
        media: What to read.
        plan: How windows lie.
        count: Most windows.
        starts: Where they start; None: the first of the file, whose length is not yet known.
    """

    item: Item
    stamp: str
    media: str | FileRange
    plan: WindowPlan
    count: int
    starts: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PartRead:
    """What a part holds; pictures and sound as numpy arrays, which travel between processes."""

    duration_seconds: float
    clips: list[Any]


def read_part(part: Part) -> PartRead | str:
    """Reads windows, in a worker process; or says why they cannot be read."""
    try:
        duration_seconds = read_duration(part.media) if part.starts is None else 0.0
        starts = part.starts
        if starts is None:
            starts = tuple(part.plan.sliding_starts(duration_seconds)[: part.count])
        clips = []
        for start in starts:
            clips.append(_packed(part.plan.read(part.media, start)))
            tell_alive()
    except MediaError as error:
        return error.reason
    except MemoryError:
        return "needs more memory to be read than there is: copy or encode it again"
    return PartRead(duration_seconds, clips)


def _packed(clip: Clip) -> dict[str, Any]:
    arrays = {name: getattr(clip, name) for name in ("video", "audio")}
    return vars(clip) | {n: None if v is None else v.numpy() for n, v in arrays.items()}


def unpacked(values: dict[str, Any]) -> Clip:
    """A clip of `PartRead`, as tensors again."""
    arrays = {name: values[name] for name in ("video", "audio")}
    tensors = {n: None if v is None else torch.from_numpy(v) for n, v in arrays.items()}
    return Clip(**(values | tensors))


class Extraction:
    """One run over inputs.

    Args:
        extractor: What encodes.
        out: Folder for the results; made if missing.
        options: What is extracted.
        model: Where the model lies, which the results are to say.

    Raises:
        UserError: options that do not fit the model.
        UserError: options that do not fit each other, or the folder.
    """

    def __init__(
        self, extractor: FeatureExtractor, out: Path, options: ExtractOptions, model: str = ""
    ) -> None:
        self._embedder = extractor.embedder
        modalities = options.modalities or tuple(media_modalities(extractor.model))
        self._forms = self._embedder.forms(
            modalities, options.space, options.return_tokens, options.normalize
        )
        self._plan = plan_windows(
            extractor.model.config, modalities, options.window_seconds, options.hop_seconds
        )
        self._options, self._out, self._model = options, out, model
        self._store = self._choose_store()
        self._parts: deque[Part] = deque()  # of files that are begun
        self._given: deque[Part] = deque()  # those that are being read
        self._tables: dict[str, tuple[WindowTable, int]] = {}  # windows that are missing
        self.report = ExtractReport()

    def _choose_store(self) -> FileStore | ParquetStore:
        settings = self._settings()
        if self._options.file_format != "parquet":
            return FileStore(self._out, f".{self._options.file_format}", settings)
        if self._options.return_tokens:
            raise UserError("a parquet data set holds no tokens: choose npz or safetensors")
        widths = {
            name: self._embedder.shape(modality, form)[0]
            for name, (modality, form) in self._forms.items()
        }
        return ParquetStore(self._out, widths, settings)

    def _settings(self) -> str:
        """All that the result depends on, apart from the input."""
        forms: dict[str, tuple[str, Form]] = self._forms
        values = {
            "format_version": FORMAT_VERSION,
            "model": weights_digest(self._embedder.model),
            "dtype": str(self._embedder.dtype).removeprefix("torch."),
            "arrays": {name: asdict(form) for name, (_, form) in forms.items()},
            "window_seconds": self._plan.window_seconds,
            "hop_seconds": self._plan.hop_seconds,
        }
        return json.dumps(values, sort_keys=True)

    def prepare(self, items: Sequence[Item]) -> None:
        """Removes what is of no use in the folder; in one process, before others."""
        self._store.clean(items)

    def run(self, items: Sequence[Item], show_progress: bool = False) -> ExtractReport:
        """Extracts what is missing; what is made is kept, also when this is interrupted."""
        began = time.monotonic()
        self._store.open()
        options = self._options
        self._bar = tqdm(total=len(items), disable=not show_progress, unit="file")
        with closing(self._store), self._bar:
            self._waiting = self._missing(items)
            with results_in_order(
                read_part,
                self,
                num_workers=options.num_workers,
                limit_seconds=LIMIT_SECONDS,
                prepare=prepare_worker,
                most_ahead=2 * options.num_workers if self._overlaps() else 1,
            ) as results:
                for result in results:
                    self._take(self._given.popleft(), result)
        self.report.seconds = time.monotonic() - began
        return self.report

    def _overlaps(self) -> bool:
        """Whether files are read while the model computes.

        On two cores both would wait for each other: a matrix product on two threads is as slow as
        the slower of them.
        """
        return self._embedder.device.type != "cpu" or num_cores() > LEAST_CORES

    def _missing(self, items: Sequence[Item]) -> Iterator[Part]:
        """The first part of each input whose features are not there."""
        for item in items:
            try:
                media, stamp = item.locate()
            except (MediaError, ShardError) as error:
                self._fail(item, getattr(error, "reason", str(error)))
                continue
            if self._store.holds(item.name, stamp):
                self.report.num_there += 1
                self._bar.update()
                continue
            count = self._options.batch_size
            yield Part(item=item, stamp=stamp, media=media, plan=self._plan, count=count)

    def __iter__(self) -> "Extraction":
        """Parts to read; more may come after the last one, when a file turns out to be long."""
        return self

    def __next__(self) -> Part:
        """The next part: of files that are begun first."""
        part = self._parts.popleft() if self._parts else next(self._waiting)
        self._given.append(part)
        return part

    def _take(self, part: Part, result: PartRead | str | Lost) -> None:
        name = part.item.name
        if name in self.report.failures:  # an earlier part of it
            return
        if not isinstance(result, PartRead):
            self._parts = deque(one for one in self._parts if one.item.name != name)
            self._tables.pop(name, None)
            self._fail(part.item, result.reason if isinstance(result, Lost) else result)
            return
        if part.starts is None:
            self._begin(part, result.duration_seconds)
        table, missing = self._tables[name]
        clips = [unpacked(values) for values in result.clips]
        table.add(clips, self._embedder.embed_clips(clips, self._forms))
        self.report.num_windows += len(clips)
        self._tables[name] = (table, missing - len(clips))
        if missing == len(clips):
            origin = describe_media(part.media) | {"model": self._model}
            self._store.write(name, part.stamp, table.features(origin))
            del self._tables[name]
            self.report.num_made += 1
            self._bar.update()

    def _begin(self, part: Part, duration_seconds: float) -> None:
        starts = self._plan.sliding_starts(duration_seconds)
        self._tables[part.item.name] = (WindowTable(self._plan, duration_seconds), len(starts))
        for first in range(part.count, len(starts), part.count):
            more = tuple(starts[first : first + part.count])
            self._parts.append(replace(part, starts=more))

    def _fail(self, item: Item, reason: str) -> None:
        self.report.failures[item.name] = reason
        self._bar.update()
