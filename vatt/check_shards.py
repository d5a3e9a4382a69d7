"""A check of finished shards that decodes every sample."""

import contextlib
import csv
import io
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vatt.captions import Fault, fault_lines
from vatt.shard_index import ShardError, find_shards, read_index, written_whole
from vatt.shards import read_record

if TYPE_CHECKING:
    from av.packet import Packet

    from vatt.media import FileWindow

END_TOLERANCE_SECONDS = 0.5  # containers round durations; a lost end is longer


@dataclass(frozen=True, kw_only=True)
class SampleCheck:
    """What decoding a whole sample showed.

    Args:
        shard: Name of the tar.
        key: Name of the sample; "" where the whole shard cannot be used.
        fault: What is wrong; "" where nothing is.
        duration_seconds: Of the media, as the file says.
        num_frames: Pictures decoded.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        frame_rate: Mean frames per second.
        sample_rate: Of the sound, Hz.
        num_captions: Segments that say something.
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


@dataclass(frozen=True)
class CheckReport:
    """Every sample of a shard folder, in order.

    Args:
        folder: The folder.
        rows: A row a sample, and one for each shard that cannot be used.
    """

    folder: str
    rows: tuple[SampleCheck, ...]

    @property
    def faults(self) -> tuple[SampleCheck, ...]:
        """The rows with a fault."""
        return tuple(row for row in self.rows if row.fault)

    def __str__(self) -> str:
        """A few lines for people: totals, then the faults."""
        samples = [row for row in self.rows if row.key]
        hours = sum(row.duration_seconds or 0 for row in samples) / 3600
        rates = sorted({row.sample_rate for row in samples if row.sample_rate})
        lines = [
            f"{self.folder}: {len(samples)} samples, {hours:.2f} hours, "
            f"{sum(row.sample_rate is not None for row in samples)} with sound "
            f"({', '.join(map(str, rates)) or 'no'} Hz), "
            f"{sum(row.num_captions > 0 for row in samples)} with captions, "
            f"{len(self.faults)} faults"
        ]
        faults = [Fault(f"{row.shard}:{row.key}", row.fault) for row in self.faults]
        return "\n".join(lines + fault_lines(faults, "fault"))

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes all rows, with a header."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [field.name for field in fields(SampleCheck)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        with written_whole(Path(path)) as file:
            file.write(text.getvalue().encode())


def check_shards(
    folder: str | os.PathLike[str], *, num_workers: int = 0, show_progress: bool = True
) -> CheckReport:
    """Decodes every sample from its first frame to its last.

    Args:
        folder: Holds `*.tar`.
        num_workers: Processes that decode; 0 decodes in this one.
        show_progress: Whether to draw a progress bar.

    Raises:
        ShardError: no such folder, or no shard in it. What is wrong with single shards and samples
            stands in the report.
    """
    folder = Path(folder)
    places: list[tuple[Path, str, list[list[int]]]] = []
    rows = []
    for shard in find_shards(folder):
        try:
            index = read_index(shard)
        except ShardError as error:
            rows.append(SampleCheck(shard=shard.name, fault=str(error)))
        else:
            places += [(shard, index.key(i), index.members[i].tolist()) for i in range(len(index))]
    with contextlib.ExitStack() as stack:
        checked: Iterable[SampleCheck] = map(check_sample, places)
        if num_workers:
            pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))
            checked = stack.enter_context(pool).map(check_sample, places, chunksize=8)
        bar = tqdm(checked, "check", len(places), unit="sample", disable=not show_progress)
        rows += bar
    return CheckReport(str(folder), tuple(sorted(rows, key=lambda row: row.shard)))


def check_sample(place: tuple[Path, str, list[list[int]]]) -> SampleCheck:
    """Reads and decodes one sample.

    Args:
        place: Shard, key, and the sample's row of the index.
    """
    from vatt.media import MediaError, probe

    shard, key, members = place
    found: dict[str, Any] = {}
    try:
        record = read_record(shard, key, np.array(members, dtype=np.int64))
        found["num_captions"] = len(record.segments)
        if record.media is None:
            raise MediaError(key, "has no media")
        info = probe(record.media)
        for name in ("duration_seconds", "width", "height", "frame_rate", "sample_rate"):
            found[name] = getattr(info, name)
        found["num_frames"] = decode_whole(record.media)
    except MediaError as error:
        found["fault"] = error.reason
    except ShardError as error:
        found["fault"] = str(error)
    return SampleCheck(shard=shard.name, key=key, **found)


def decode_whole(source: "FileWindow") -> int:
    """Decodes all pictures and all sound of a file; the number of pictures.

    Raises:
        MediaError: no picture and no sound, or damage anywhere.
    """
    from vatt.packets import audio_stream, video_stream
    from vatt.sources import Damage, open_media

    with open_media(source) as container:
        streams = [s for s in (video_stream(container), audio_stream(container)) if s is not None]
        if not streams:
            raise Damage("has no picture or sound")
        num_decoded = dict.fromkeys((stream.index for stream in streams), 0)
        end_seconds = 0.0
        for packet in container.demux(streams):
            num_decoded[packet.stream.index] += _decode_packet(packet)
            if packet.size and packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                end_seconds = max(end_seconds, float(end))
        for stream in streams:
            if not num_decoded[stream.index]:
                raise Damage(f"has a {stream.type} stream that cannot be decoded")
        _check_end(container, end_seconds)
        return sum(num_decoded[s.index] for s in streams if s.type == "video")


def _decode_packet(packet: "Packet[Any]") -> int:
    """Decodes a packet, or what the decoder holds back at the end; the number of frames."""
    from av.error import FFmpegError

    from vatt.decode import prepare_decoder
    from vatt.sources import Damage

    try:
        frames = prepare_decoder(packet.stream).decode(packet if packet.size else None)
    except FFmpegError as error:
        frames, reason = [], f" ({error.strerror})"
    else:
        reason = ""
    if reason or packet.is_corrupt or any(frame.is_corrupt for frame in frames):
        seconds = float((packet.pts or 0) * (packet.time_base or 0))
        raise Damage(f"its {packet.stream.type} is damaged at {seconds:.2f} s{reason}")
    return len(frames)


def _check_end(container: Any, end_seconds: float) -> None:
    """Refuses a file that says it is longer than what it holds."""
    from vatt.sources import Damage

    if not container.duration:
        return
    promised = (container.duration + (container.start_time or 0)) / 1e6  # FFmpeg's unit is 1 µs
    if promised - end_seconds > END_TOLERANCE_SECONDS:
        raise Damage(
            f"is incomplete: it says it ends at {promised:.2f} s, and ends at {end_seconds:.2f} s"
        )
