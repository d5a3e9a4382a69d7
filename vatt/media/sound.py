"""Sound of a clip: packets become one waveform, placed by its timestamps."""

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

from vatt.media.decoder import decode_packet
from vatt.media.packets import PRE_ROLL_SECONDS
from vatt.media.source import Damage
from vatt.media.streams import MediaPacket, tick_seconds

# Sound that starts further from where it should follow is a gap; containers round times to 1 ms.
GAP_SECONDS = 0.02


def decode_waveform(
    audio: AudioStream,
    packets: list[MediaPacket],
    start_seconds: float,
    num_samples: int,
    sample_rate: int,
) -> tuple[np.ndarray, float]:
    """Decodes sound to mono and places it by its timestamps; gaps are zeros.

    Returns:
        float32 `[S]`, and the share of samples, in [0, 1], that come from the file.

    Raises:
        Damage: a packet cannot be decoded.
    """
    runs: list[tuple[SoundRun, list[np.ndarray]]] = []
    # A parser that starts amid a stream may begin with half a packet; codecs need less than half
    # the pre-roll.
    excused_until = (start_seconds - PRE_ROLL_SECONDS / 2) / tick_seconds(audio)
    for packet in [*packets, None]:
        try:
            frames = decode_packet(audio, packet)
        except Damage:
            if packet is None or packet.pts is None or packet.pts >= excused_until or runs:
                raise
            continue
        for frame in frames:
            if frame.pts is None:
                continue
            if not runs or not runs[-1][0].continues(frame):
                runs.append((SoundRun(frame, "mono", sample_rate), []))
            run, pieces = runs[-1]
            pieces += run.add(frame)
    waveform, covered = np.zeros(num_samples, np.float32), 0
    for run, pieces in runs:
        samples = np.concatenate([*pieces, *run.end()], axis=1)[0]
        offset = round((run.start_seconds - start_seconds) * sample_rate)
        first, last = max(0, offset), min(num_samples, offset + len(samples))
        if first < last:
            waveform[first:last] = samples[first - offset : last - offset]
            covered += last - first
    return waveform, min(1.0, covered / num_samples)


class SoundRun:
    """Sound without gaps, resampled in one piece.

    Channels are averaged, so that full scale remains full scale.

    Args:
        first: First frame, which is still to be added.
        layout: FFmpeg's name for the channels of the result.
        sample_rate: Sample rate of the result, Hz.
    """

    def __init__(self, first: AudioFrame, layout: str, sample_rate: int) -> None:
        self._resampler = AudioResampler(
            "fltp", layout, sample_rate, options={"rematrix_maxval": "1"}
        )
        self._form = _form(first)
        self.start_seconds = self._next_seconds = first.time or 0.0

    def continues(self, frame: AudioFrame) -> bool:
        """Whether a frame continues this sound without a gap, in the same format."""
        gap_seconds = abs((frame.time or 0.0) - self._next_seconds)
        return self._form == _form(frame) and gap_seconds < GAP_SECONDS

    def add(self, frame: AudioFrame) -> list[np.ndarray]:
        """Takes a frame; float32 `[channels, samples]` that are ready."""
        self._next_seconds += frame.samples / frame.sample_rate
        return [piece.to_ndarray() for piece in self._resampler.resample(frame)]

    def end(self) -> list[np.ndarray]:
        """Samples that the resampler still holds, like those of `add`."""
        return [piece.to_ndarray() for piece in self._resampler.resample(None)]


def _form(frame: AudioFrame) -> tuple[str, str, int]:
    """Sample format, channel layout and rate (Hz) that a resampler needs."""
    return frame.format.name, frame.layout.name, frame.sample_rate
