"""Check of finished shards, which decodes every sample."""

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vatt.errors import Fault, MediaError, ShardError, fault_lines
from vatt.media.reader_process import LIMIT_SECONDS, prepare_worker
from vatt.shards.index import ShardIndex
from vatt.shards.index_file import read_index
from vatt.shards.places import Shard, find_tars, local_or_remote
from vatt.shards.record import Segment, read_record
from vatt.shards.remote import RemoteShard
from vatt.system.csv_rows import write_rows
from vatt.system.progress import progress_bar
from vatt.system.workers import Lost, results_in_order

SHOWN_VALUES = 4  # sizes and rates, in printed reports


@dataclass(frozen=True, kw_only=True)
class SampleCheck:
    """Result of decoding a whole sample.

    Args:
        shard: Name of the tar.
        key: Name of the sample; "" if the whole shard cannot be used.
        fault: Fault of the sample; "" if there is none.
        duration_seconds: Length of the media by the file's header.
        num_frames: Number of decoded frames.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        frame_rate: Mean frames per second.
        sample_rate: Sample rate of the sound in Hz.
        num_captions: Number of captions of the sample.
        num_outside: Number of captions that begin after the end of the media, or end before its
            start.
        captioned_seconds: Time of the media that captions cover.
    """

    shard: str
    key: str = ""
    fault: str = ""
    duration_seconds: float | None = None
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    frame_rate: float | None = None
    sample_rate: int | None = None
    num_captions: int = 0
    num_outside: int = 0
    captioned_seconds: float | None = None


# shard, key, and the sample's row of the index
Place = tuple[Shard, str, NDArray[np.int64]]


@dataclass(frozen=True)
class CheckReport:
    """Results for all samples of a shard folder, in order.

    Args:
        folder: The folder.
        rows: One row per sample, and one for each shard that cannot be used.
    """

    folder: str
    rows: tuple[SampleCheck, ...]

    @property
    def faults(self) -> tuple[SampleCheck, ...]:
        """Rows with a fault."""
        return tuple(row for row in self.rows if row.fault)

    def __str__(self) -> str:
        """A few readable lines: totals, properties of the samples, and faults."""
        samples = [row for row in self.rows if row.key]
        lengths = [row.duration_seconds for row in samples if row.duration_seconds is not None]
        num_shards = len({row.shard for row in self.rows})
        lines = [
            f"{self.folder}: {len(samples)} samples in {num_shards} shards, "
            f"{sum(lengths) / 3600:.2f} hours, {len(self.faults)} faults"
        ]
        if samples:
            sizes = [f"{row.width}×{row.height}" for row in samples if row.width is not None]
            lines += [
                f"  length: {_spread(lengths)}",
                f"  picture: {_most_common(sizes, len(samples))}, "
                f"{_rates(samples, 'frame_rate', 'frames/s')}",
                f"  sound: {_rates(samples, 'sample_rate', 'Hz')}",
                f"  captions: {_captions(samples)}",
            ]
        faults = [Fault(f"{row.shard}:{row.key}", row.fault) for row in self.faults]
        return "\n".join(lines + fault_lines(faults, "fault"))

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes all rows with a header to a csv file."""
        header = [field.name for field in fields(SampleCheck)]
        write_rows(Path(path), [header, *(astuple(row) for row in self.rows)])


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "unknown"
    median = statistics.median(seconds)
    return f"{min(seconds):.1f} to {max(seconds):.1f} s, median {median:.1f} s"


def _most_common(values: Iterable[str], num_samples: int) -> str:
    """`3 × 16000 Hz, 1 × 44100 Hz, 2 × none`, the most frequent ones."""
    counts = Counter(values)
    parts = [f"{count:,} × {value}" for value, count in counts.most_common(SHOWN_VALUES)]
    num_others = len(counts) - len(parts)
    parts += [f"{num_others} other kinds"] if num_others else []
    num_none = num_samples - counts.total()
    return ", ".join(parts + ([f"{num_none:,} × none"] if num_none else []))


def _rates(samples: Sequence[SampleCheck], name: str, unit: str) -> str:
    rates = [rate for row in samples if (rate := getattr(row, name)) is not None]
    return _most_common((f"{rate:.5g} {unit}" for rate in rates), len(samples))


def _captions(samples: Sequence[SampleCheck]) -> str:
    """Share of samples with captions, and of their time."""
    spoken = [row for row in samples if row.num_captions]
    if not spoken:
        return f"none of {len(samples):,} samples has any"
    numbers = [row.num_captions for row in spoken]
    timed = [row for row in spoken if row.duration_seconds and row.captioned_seconds is not None]
    seconds = sum(row.duration_seconds or 0 for row in timed)
    covered = sum(row.captioned_seconds or 0 for row in timed)
    num_outside = sum(row.num_outside for row in samples)
    return (
        f"{len(spoken):,} of {len(samples):,} samples ({len(spoken) / len(samples):.0%}), "
        f"{sum(numbers) / len(spoken):.1f} each"
        + (f", during {covered / seconds:.0%} of their time" if seconds else "")
        + (f"; {num_outside:,} lie outside of their media" if num_outside else "")
    )


def check_shards(
    folder: str | os.PathLike[str],
    *,
    num_workers: int = 0,
    limit_seconds: float = LIMIT_SECONDS,
    show_progress: bool = True,
) -> CheckReport:
    """Decodes every sample from its first frame to its last.

    Args:
        folder: Folder with `*.tar`: a path, or an address (`vatt/shards/remote.py`).
        num_workers: Processes that decode. 0: this process; a decoder that hangs or crashes then
            stops the whole check.
        limit_seconds: Time without a decoded packet after which a sample counts as hanging.
        show_progress: Whether to show progress bars.

    Raises:
        ShardError: the folder does not exist or has no shards. Faults of single shards and samples
            are in the report.
    """
    places: list[Place] = []
    rows = []
    folder = local_or_remote(os.fspath(folder))
    tars = find_tars(folder)
    with results_in_order(_index_of, tars, num_workers=num_workers) as indexes:
        pairs = zip(tars, indexes, strict=True)
        for tar, index in progress_bar(pairs, "index", len(tars), unit="shard", show=show_progress):
            if isinstance(index, Lost):
                rows.append(SampleCheck(shard=tar.name, fault=index.reason))
            else:
                places += [(tar, index.key(i), index.members[i]) for i in range(len(index))]
    with results_in_order(
        check_sample,
        places,
        num_workers=num_workers,
        limit_seconds=limit_seconds,
        prepare=prepare_worker,
    ) as checked:
        checks = zip(places, checked, strict=True)
        bar = progress_bar(checks, "check", len(places), unit="sample", show=show_progress)
        for (tar, key, _), row in bar:
            if isinstance(row, Lost):
                row = SampleCheck(shard=tar.name, key=key, fault=row.reason)
            rows.append(row)
    return CheckReport(str(folder), tuple(sorted(rows, key=lambda row: row.shard)))


def _index_of(tar: Shard) -> ShardIndex | Lost:
    try:
        return tar.index() if isinstance(tar, RemoteShard) else read_index(tar)
    except ShardError as error:
        return Lost(str(error))


def check_sample(place: Place) -> SampleCheck:
    """Reads and decodes one sample.

    Args:
        place: Shard, key and index row of the sample.
    """
    from vatt.media.clip import probe
    from vatt.media.decode_whole import decode_whole

    shard, key, members = place
    result: dict[str, Any] = {}
    try:
        record = read_record(shard, key, members)
        result["num_captions"] = len(record.segments)
        if record.media is None:
            raise MediaError(key, "has no media")
        info = probe(record.media)
        for name in ("duration_seconds", "width", "height", "frame_rate", "sample_rate"):
            result[name] = getattr(info, name)
        result["num_outside"], result["captioned_seconds"] = _coverage(
            record.segments, info.duration_seconds
        )
        result["num_frames"] = decode_whole(record.media)
    except MediaError as error:
        result["fault"] = error.reason
    except ShardError as error:
        result["fault"] = str(error)
    except MemoryError:
        result["fault"] = "needs more memory to be read than there is: copy or encode it again"
    return SampleCheck(shard=shard.name, key=key, **result)


def _coverage(
    segments: Sequence[Segment], duration_seconds: float | None
) -> tuple[int, float | None]:
    """Number of captions outside of the media, and the seconds that the others cover."""
    if duration_seconds is None:
        return 0, None
    num_outside = 0
    covered = reached = 0.0
    for segment in sorted(segments, key=lambda segment: segment.start_seconds):
        # half-open: [2, 2) is in media of 3 s; a still has no duration and all captions
        outside = segment.start_seconds >= duration_seconds or segment.end_seconds <= 0
        num_outside += outside and duration_seconds > 0
        start, end = max(segment.start_seconds, reached), min(segment.end_seconds, duration_seconds)
        covered += max(0.0, end - start)
        reached = max(reached, end)
    return num_outside, covered
