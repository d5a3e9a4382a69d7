"""A stand-in for the package torchcodec, as far as `datasets` and mteb use it.

torchcodec needs the libraries of an FFmpeg on the machine. This one decodes with PyAV.
"""

import io
import sys
import wave
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch


def _open(source: Any) -> Any:
    return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))


class VideoDecoder:
    """Frames uint8 `[T, 3, H, W]` of a file."""

    def __init__(self, source: Any, **_: Any) -> None:
        with _open(source) as container:
            rate = float(container.streams.video[0].average_rate)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        self.frames = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        self.metadata = SimpleNamespace(
            num_frames=len(frames), average_fps=rate, end_stream_seconds=len(frames) / rate
        )

    def get_frames_at(self, indices: list[int]) -> Any:
        return SimpleNamespace(data=self.frames[indices])


class AudioDecoder:
    """Samples float `[channels, S]` of a file."""

    def __init__(self, source: Any, **_: Any) -> None:
        self.metadata = SimpleNamespace()
        with _open(source) as container:
            stream = container.streams.audio[0]
            to_floats = av.AudioResampler("fltp")
            frames = [
                one for frame in container.decode(stream) for one in to_floats.resample(frame)
            ]
            self.rate = stream.rate
        samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
        self.samples = SimpleNamespace(data=torch.from_numpy(samples), sample_rate=self.rate)

    def get_all_samples(self) -> Any:
        return self.samples

    def get_samples_played_in_range(self, start: float, stop: float) -> Any:
        return self.samples


class AudioEncoder:
    """Writer of WAV files."""

    def __init__(self, samples: torch.Tensor, *, sample_rate: int) -> None:
        self.samples, self.rate = samples, sample_rate

    def to_file_like(self, buffer: Any, **_: Any) -> None:
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes((self.samples.clamp(-1, 1) * 32767).short().numpy().tobytes())


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `datasets` decode with the stand-in until the end of the test."""
    import datasets.config

    package = ModuleType("torchcodec")
    parts = {"decoders": (VideoDecoder, AudioDecoder), "encoders": (AudioEncoder,)}
    for name, classes in parts.items():
        part = ModuleType(f"torchcodec.{name}")
        part.__dict__.update({one.__name__: one for one in classes})
        setattr(package, name, part)
        monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", True)
    monkeypatch.delitem(sys.modules, "datasets.features._torchcodec", raising=False)
