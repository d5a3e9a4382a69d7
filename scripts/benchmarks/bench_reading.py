"""Three ways to one clip: ours, its decoding alone, and a first attempt with PyAV."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from bench_media import MediaKind, make_media
from bench_table import Row
from torch import Tensor
from torch.nn.functional import interpolate

from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.media.clip import Clip
from vatt.media.decoder import prepare_decoder
from vatt.media.opening import open_media
from vatt.media.packets import Span, decoding_runs, read_packets, without_leading
from vatt.media.pictures import SKIPPING_CODECS, choose_frames, scaled_size
from vatt.media.streams import origin_seconds, video_stream
from vatt.preprocess.view import read_view

VIDEO, AUDIO = VideoConfig(), AudioConfig()  # 32 frames at 10 fps, 224 pixels; 3.2 s at 48 kHz
AT_LEAST_OF_DECODING = 0.65
AT_LEAST_OF_NAIVE = 1.5


def measure_reading(
    folder: Path, kinds: Sequence[MediaKind], *, media_seconds: float, num_clips: int, rounds: int
) -> list[Row]:
    """Clips per second of the three ways, on the same clips, one after the other in each round."""
    torch.set_num_threads(1)
    ways: tuple[Callable[[Path, float], Any], ...] = (read_planned, decode_only, read_naively)
    rows = []
    for kind in kinds:
        path = make_media(folder, kind, media_seconds)
        draw = random.Random(0)
        starts = [draw.uniform(0, media_seconds - VIDEO.duration_seconds) for _ in range(num_clips)]
        planned, decoding, naive = (
            sum(statistics.median(times) for times in per_clip)
            for per_clip in _time_all(ways, path, starts, rounds)
        )
        rows += [
            Row(case=kind.name, what="clips read", value=num_clips / planned, unit="1/s"),
            Row(
                case=kind.name,
                what="of decoding alone",
                value=decoding / planned,
                unit="×",
                at_least=AT_LEAST_OF_DECODING,
            ),
            Row(
                case=kind.name,
                what="of naive reading, which leaves out the sound",
                value=naive / planned,
                unit="×",
                at_least=AT_LEAST_OF_NAIVE,
            ),
        ]
    return rows


def _time_all(
    ways: Sequence[Callable[[Path, float], Any]], path: Path, starts: Sequence[float], rounds: int
) -> list[list[list[float]]]:
    """Seconds of every way, for every start, in every round."""
    times: list[list[list[float]]] = [[[] for _ in starts] for _ in ways]
    for _ in range(rounds):
        for clip, start_seconds in enumerate(starts):
            for way, read in enumerate(ways):
                before = time.perf_counter()
                read(path, start_seconds)
                times[way][clip].append(time.perf_counter() - before)
    return times


def read_planned(path: Path, start_seconds: float) -> Clip:
    """Picture and sound as training reads them."""
    return read_view(path, start_seconds=start_seconds, video=VIDEO, audio=AUDIO)


def decode_only(path: Path, start_seconds: float) -> int:
    """Decodes what `read_planned` decodes of the picture, and drops it; gives the frames' number.

    The plan is that of `vatt.media.pictures.decode_frames`; no frame is scaled, converted, copied
    or checked, and no sound is read.
    """
    num_frames = 0
    with open_media(path) as container:
        video = video_stream(container)
        assert video is not None
        wanted = _wanted_seconds(origin_seconds(container) + start_seconds)
        packets = read_packets(container, video, None, Span(wanted[0], wanted[-1], wanted[0]))
        needed = set(choose_frames(video, packets, wanted)[0])
        decoder = prepare_decoder(video)
        may_skip = decoder.codec.canonical_name in SKIPPING_CODECS
        for place, run in enumerate(decoding_runs(without_leading(packets), needed)):
            if place:
                decoder.flush_buffers()
            for packet in run:
                if may_skip:
                    decoder.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
                num_frames += len(decoder.decode(packet))
            decoder.skip_frame = "DEFAULT"
            num_frames += len(decoder.decode(None))
    return num_frames


def read_naively(path: Path, start_seconds: float) -> Tensor:
    """Decodes all frames from the key frame on, converts those of the clip, scales those asked for.

    Returns:
        uint8 `[T, H, W, C]`.
    """
    times: list[float] = []
    pictures: list[np.ndarray] = []
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        start = (container.start_time or 0) / av.time_base + start_seconds
        wanted = _wanted_seconds(start)
        container.seek(int(start * av.time_base), backward=True)
        for frame in container.decode(video):
            if frame.time > wanted[-1] + 1e-6:
                break
            if frame.time + 1 / video.average_rate > start:
                times.append(frame.time)
                pictures.append(frame.to_ndarray(format="rgb24"))
    places = np.searchsorted(times, np.array(wanted) + 1e-6, side="right") - 1
    stack = torch.from_numpy(np.stack([pictures[max(place, 0)] for place in places]))
    width, height = scaled_size(stack.shape[2], stack.shape[1], VIDEO.image_size)
    scaled = interpolate(
        stack.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", antialias=True
    )
    return scaled.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def _wanted_seconds(first_seconds: float) -> list[float]:
    return [first_seconds + place / VIDEO.frame_rate for place in range(VIDEO.num_frames)]
