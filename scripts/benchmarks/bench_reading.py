"""Three ways to read a clip: ours, its decoding alone, and naively with PyAV."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from bench_media import MediaKind, make_media
from torch import Tensor
from torch.nn.functional import interpolate

from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.gpu_check.figures import Row, median_seconds
from vatt.media.clip import Clip
from vatt.media.decoder import prepare_decoder
from vatt.media.opening import open_media
from vatt.media.packets import Span, decoding_runs, read_packets, without_leading
from vatt.media.pictures import SKIPPING_CODECS, choose_frames, scaled_size
from vatt.media.streams import origin_seconds, video_stream
from vatt.preprocess.view import read_view

VIDEO, AUDIO = VideoConfig(), AudioConfig()  # 32 frames at 10 fps, 224 pixels; 3.2 s at 48 kHz


def measure_reading(
    folder: Path, kinds: Sequence[MediaKind], *, media_seconds: float, num_clips: int, rounds: int
) -> list[Row]:
    """Clips per second of the three ways, which take turns on each clip."""
    torch.set_num_threads(1)
    ways = {"planned": read_planned, "decoding": decode_only, "naive": read_naively}
    rows = []
    for kind in kinds:
        path = make_media(folder, kind, media_seconds)
        draw = random.Random(0)
        starts = [draw.uniform(0, media_seconds - VIDEO.duration_seconds) for _ in range(num_clips)]
        seconds = dict.fromkeys(ways, 0.0)  # of all clips
        for start in starts:
            steps = {way: partial(read, path, start) for way, read in ways.items()}
            for way, median in median_seconds(steps, rounds, torch.device("cpu")).items():
                seconds[way] += median
        planned, decoding, naive = seconds.values()
        rows += [
            Row(kind.name, "clips read", num_clips / planned, "1/s"),
            Row(kind.name, "of decoding alone", decoding / planned, "×", at_least=0.65),
            Row(kind.name, "of naive reading, without sound", naive / planned, "×", at_least=1.5),
        ]
    return rows


def read_planned(path: Path, start_seconds: float) -> Clip:
    """Picture and sound as training reads them."""
    return read_view(path, start_seconds=start_seconds, video=VIDEO, audio=AUDIO)


def decode_only(path: Path, start_seconds: float) -> int:
    """Decodes the frames that `read_planned` decodes, and drops them; returns their number.

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
    """Decodes all frames from the key frame on, converts those of the clip, scales the wanted ones.

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
