"""Measures `vatt extract`: its speed compared with that of its parts, and its memory.

    python scripts/benchmarks/bench_extract.py                # about two minutes on two cores
    python scripts/benchmarks/bench_extract.py --quick        # small sizes, to see that it works

Reading alone, the model alone and both together are timed on the same files in the same run. Both
together are compared with one after the other, 1 / (1/reading + 1/model). The time in which worker
processes start is listed apart. Memory is the largest resident size of one process (Linux). The
section `others` does the same with a CLIP of transformers, whose own processor counts as part of
the model (`pip install "vatt[hf]"`).
"""

import dataclasses
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from bench_media import TINY_KIND, MediaKind, make_media
from bench_table import benchmark_parser, run_sections

from vatt import VATT, FeatureExtractor, VATTConfig, preset
from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.config.model import EncoderConfig
from vatt.config.options import ExtractOptions
from vatt.encoders.encoder import Encoder
from vatt.encoders.own import VATTEncoder
from vatt.features.embedder import Embedder
from vatt.features.extraction import Extraction, Part, PartRead, read_part
from vatt.features.inputs import find_items
from vatt.gpu_check.figures import Row
from vatt.preprocess.windows import plan_windows

HOP_SECONDS = 20.0  # in the long file, of which only the length matters
FILM = MediaKind(name="360p", file="film.mp4", width=480, height=360, video_bit_rate=2_000_000)
LONG = dataclasses.replace(  # hours of it are made in a minute
    TINY_KIND, frame_rate=2, sample_rate=8_000, audio_bit_rate=32_000, aac_coder="fast"
)
# takes about as long as reading: four blocks of a third of Base's width
ENCODER = EncoderConfig(num_layers=4, d_model=256, d_ff=1024, num_heads=4)
MODEL = VATTConfig(video=VideoConfig(), audio=AudioConfig(), encoder=ENCODER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Extent of the measurements."""

    num_files: int = 6  # short ones
    seconds: int = 16  # length of each
    film: MediaKind = FILM
    long_seconds: int = 3 * 3600  # length of the long file
    model: VATTConfig = MODEL


QUICK = Sizes(num_files=3, seconds=2, film=TINY_KIND, long_seconds=20, model=preset("tiny"))


def vatt_encoder(config: VATTConfig) -> Encoder:
    """A VATT with random weights, on the CPU."""
    torch.manual_seed(0)
    return VATTEncoder(VATT(config).eval(), None, "cpu", "float32")


def clip_encoder(config: VATTConfig) -> Encoder:
    """A CLIP with random weights and pictures of 224 pixels, on the CPU.

    Args:
        config: VATT whose encoder is as large.
    """
    from vatt.encoders.picture_text import PictureTextEncoder
    from vatt.encoders.transformers_loading import load_transformers

    transformers = load_transformers()
    from tokenizers import Tokenizer, models

    sizes = config.encoder
    tower = {
        "hidden_size": sizes.d_model,
        "intermediate_size": sizes.d_ff,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
    }
    torch.manual_seed(0)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**tower, "vocab_size": 4}, vision_config={**tower, "patch_size": 32}
        )
    )
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    pictures = "CLIPImageProcessor" if find_spec("torchvision") else "CLIPImageProcessorPil"
    processor = transformers.CLIPProcessor(getattr(transformers, pictures)(), words)
    return PictureTextEncoder(model, processor, device="cpu", dtype="float32")


def read_all(folder: Path, encoder: Encoder, batch_size: int) -> Iterator[PartRead]:
    """Reads every part of every file in this process."""
    plan = plan_windows(encoder, encoder.media_modalities)
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


def measure_parts(folder: Path, encoder: Encoder, batch_size: int = 8) -> tuple[int, float, float]:
    """Number of windows in a folder, and seconds of reading and of encoding them."""
    embedder = Embedder(encoder)
    forms = embedder.forms(encoder.media_modalities)
    reading = encoding = 0.0
    count = 0
    began = time.perf_counter()
    for part in read_all(folder, encoder, batch_size):
        reading += time.perf_counter() - began
        began = time.perf_counter()
        embedder.embed_clips(part.clips, forms)
        encoding += time.perf_counter() - began
        count += len(part.clips)
        began = time.perf_counter()
    return count, reading, encoding


def timed_run(folder: Path, encoder: Encoder, hop_seconds: float | None = None) -> float:
    """Seconds of an extraction with a worker process."""
    out = folder.with_name(f"{folder.name}-out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    extraction = Extraction(
        FeatureExtractor(encoder),
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


def measure_speed(
    sizes: Sizes, folder: Path, make_encoder: Callable[[VATTConfig], Encoder] = vatt_encoder
) -> list[Row]:
    """Rates on short files, and memory."""
    folder = folder / make_encoder.__name__
    short, one = folder / "short", folder / "one"  # `one` has next to nothing to read
    first = make_media(short, sizes.film, sizes.seconds)
    for number in range(1, sizes.num_files):
        shutil.copy(first, short / f"{number}.mp4")
    make_media(one, LONG, 1)
    encoder = make_encoder(sizes.model)
    measure_parts(one, encoder)  # what is loaded or compiled at the first use does not count
    count, reading, encoding = measure_parts(short, encoder)
    whole, start = timed_run(short, encoder), timed_run(one, encoder)
    serial = reading + encoding
    case = f"{sizes.num_files} files of {sizes.seconds} s"
    ratio = "reading with the model, of one after the other"
    return [
        Row(case, "windows", count),
        Row(case, "reading", count / reading, "1/s"),
        Row(case, "model", count / encoding, "1/s"),
        Row(case, "reading with the model", count / (whole - start), "1/s"),
        Row(case, ratio, serial / (whole - start), "×", at_least=0.9),
        Row(case, "start of a worker", start, "s"),
        Row(case, "… with the start of a worker", serial / whole, "×"),
        Row(case, "largest process", peak_gib(), "GiB"),
    ]


def measure_long(sizes: Sizes, folder: Path) -> list[Row]:
    """Time and memory of one long file."""
    make_media(folder / "long", LONG, sizes.long_seconds)
    encoder = vatt_encoder(preset("tiny"))
    seconds = timed_run(folder / "long", encoder, hop_seconds=HOP_SECONDS)
    case = f"a file of {sizes.long_seconds / 3600:.2g} hours"
    return [
        Row(case, "extraction", seconds, "s"),
        Row(case, "largest process", peak_gib(), "GiB", at_most=2.0),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    others = ("others",) if find_spec("transformers") else ()
    options = benchmark_parser(__doc__, ("speed", *others, "long")).parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        measures = {
            "speed": partial(measure_speed, sizes, Path(folder)),
            "others": partial(measure_speed, sizes, Path(folder), clip_encoder),
            "long": partial(measure_long, sizes, Path(folder)),
        }
        return run_sections(measures, options)


if __name__ == "__main__":
    sys.exit(main())
