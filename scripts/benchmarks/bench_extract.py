"""What `vatt extract` reaches of its parts, and the memory that it takes.

    python scripts/benchmarks/bench_extract.py                # about two minutes on two cores
    python scripts/benchmarks/bench_extract.py --quick        # small sizes, to see that it works

Reading alone, the model alone and both together are timed on the same files in the same run; their
ratio is to that of doing one after the other, 1 / (1/reading + 1/model). The time that the worker
processes take to start is told apart. Memory is the largest resident size of one process (Linux).
"""

import argparse
import dataclasses
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch

from vatt import VATT, FeatureExtractor, VATTConfig, preset
from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.config.model import EncoderConfig
from vatt.features.embedder import Embedder
from vatt.features.extraction import Extraction, ExtractOptions, Part, PartRead, read_part
from vatt.features.extractor import media_modalities
from vatt.features.inputs import find_items
from vatt.preprocess.windows import plan_windows

GOAL = 0.9
GOAL_GIB = 2.0
HOP_SECONDS = 20.0  # in the long file: its length is what counts
# of about as much work as reading: four blocks of a third of Base's width
ENCODER = EncoderConfig(num_layers=4, d_model=256, d_ff=1024, num_heads=4)
MODEL = VATTConfig(video=VideoConfig(), audio=AudioConfig(), encoder=ENCODER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured.

    Args:
        num_files: Short files.
        seconds: Of each.
        side: Height of their pictures in pixels; the width is 4/3 of it.
        long_seconds: Of the long file.
        model: What encodes.
    """

    num_files: int = 6
    seconds: int = 16
    side: int = 360
    long_seconds: int = 3 * 3600
    model: VATTConfig = MODEL


QUICK = Sizes(num_files=3, seconds=2, side=48, long_seconds=20, model=preset("tiny"))


def write_film(path: Path, seconds: int, side: int, frame_rate: int) -> None:
    """Encodes moving noise with a tone, picture by picture."""
    width = side * 4 // 3 // 2 * 2
    texture = np.random.default_rng(0).integers(0, 255, (side, 2 * width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=frame_rate, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, side, "yuv420p"
        audio = container.add_stream("aac", rate=16_000, layout="mono")
        for index in range(seconds):
            for place in range(frame_rate):
                left = (index * frame_rate + place) % width
                pixels = np.ascontiguousarray(texture[:, left : left + width])
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            times = index + np.arange(16_000) / 16_000
            tone = (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)[None]
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16_000, index * 16_000
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def read_all(folder: Path, model: VATT, batch_size: int) -> Iterator[PartRead]:
    """Every part of every file, read in this process."""
    plan = plan_windows(model.config, media_modalities(model))
    for item in find_items([str(folder)]):
        media, stamp = item.locate()
        part = Part(item=item, stamp=stamp, media=media, plan=plan, count=batch_size)
        first = read_part(part)
        assert isinstance(first, PartRead), first
        yield first
        starts = plan.sliding_starts(first.duration_seconds)
        for place in range(batch_size, len(starts), batch_size):
            more = tuple(starts[place : place + batch_size])
            read = read_part(dataclasses.replace(part, starts=more))
            assert isinstance(read, PartRead), read
            yield read


def bench_speed(folder: Path, one: Path, model: VATT, batch_size: int = 8) -> dict[str, float]:
    """Windows a second of reading, of the model, and of both; `one` has next to nothing to read."""
    embedder = Embedder(model, "cpu", "float32")
    forms = embedder.forms(media_modalities(model))
    reading = encoding = 0.0
    count = 0
    began = time.perf_counter()
    for part in read_all(folder, model, batch_size):
        reading += time.perf_counter() - began
        began = time.perf_counter()
        embedder.embed_clips(part.clips, forms)
        encoding += time.perf_counter() - began
        count += len(part.clips)
        began = time.perf_counter()
    whole, start = timed_run(folder, model), timed_run(one, model)
    alone = {"reading": count / reading, "model": count / encoding}
    serial = 1 / sum(1 / rate for rate in alone.values())
    together = count / (whole - start)
    return {
        **alone,
        "together": together,
        "start_seconds": start,
        "windows": count,
        "ratio": together / serial,
        "ratio_with_start": count / whole / serial,
    }


def timed_run(folder: Path, model: VATT, hop_seconds: float | None = None) -> float:
    """Seconds of an extraction with a worker process."""
    out = folder.with_name(f"{folder.name}-out")
    out.mkdir(exist_ok=True)
    extraction = Extraction(
        FeatureExtractor(model, device="cpu"),
        out,
        ExtractOptions(num_workers=1, hop_seconds=hop_seconds),
    )
    items = find_items([str(folder)])
    extraction.prepare(items)
    began = time.perf_counter()
    report = extraction.run(items)
    assert not report.failures, report
    return time.perf_counter() - began


def peak_gib() -> float:
    """The largest resident size of this process or of one of its workers so far."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20


def measure_speed(sizes: Sizes, folder: Path) -> dict[str, float]:
    """Rates on short files, and the memory that they take."""
    short, one = folder / "short", folder / "one"
    short.mkdir()
    one.mkdir()
    for number in range(sizes.num_files):
        write_film(short / f"{number:03}.mp4", sizes.seconds, sizes.side, 25)
    write_film(one / "film.mp4", 1, 48, 5)
    torch.manual_seed(0)
    return bench_speed(short, one, VATT(sizes.model).eval()) | {"gib": peak_gib()}


def measure_long(sizes: Sizes, folder: Path) -> dict[str, float]:
    """Time and memory of one long file."""
    long = folder / "long"
    long.mkdir()
    write_film(long / "film.mp4", sizes.long_seconds, 48, 2)
    model = VATT(preset("tiny")).eval()
    seconds = timed_run(long, model, hop_seconds=HOP_SECONDS)
    return {"hours": sizes.long_seconds / 3600, "seconds": seconds, "gib": peak_gib()}


def main() -> None:
    """Prints the numbers beside their goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--sections", default="speed,long", help="speed, long")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    numbers: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in arguments.sections:
            numbers["speed"] = speed = measure_speed(sizes, Path(folder))
            print(f"{speed['windows']} windows, {torch.get_num_threads()} threads, one worker")
            print(f"windows/s: reading {speed['reading']:.2f}, model {speed['model']:.2f}")
            print(f"both: {speed['together']:.2f}, {speed['ratio']:.2f} of one after the other")
            print(f"  (goal {GOAL}; with {speed['start_seconds']:.1f} s to start: ", end="")
            print(f"{speed['ratio_with_start']:.2f}); largest process {speed['gib']:.2f} GiB")
        if "long" in arguments.sections:
            numbers["long"] = far = measure_long(sizes, Path(folder))
            print(f"a file of {far['hours']:.2g} hours: {far['seconds']:.0f} s, largest process ")
            print(f"  {far['gib']:.2f} GiB (goal < {GOAL_GIB})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
