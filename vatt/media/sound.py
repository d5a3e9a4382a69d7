"""Sound of a clip: packets become one waveform, placed by its timestamps."""

from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

from vatt.media.decoder import decode_packet, prepare_decoder
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
    waveform = np.zeros(num_samples, np.float32)
    decoder = prepare_decoder(audio)
    run = SoundRun(sample_rate)
    covered = 0
    # A parser that starts amid a stream may begin with half a packet; codecs need less than half
    # the pre-roll.
    excused_until = (start_seconds - PRE_ROLL_SECONDS / 2) / tick_seconds(audio)
    for packet in [*packets, None]:
        try:
            frames = decode_packet(decoder, packet, audio)
        except Damage:
            if (
                packet is None
                or packet.pts is None
                or packet.pts >= excused_until
                or not run.is_empty
            ):
                raise
            continue
        for frame in frames:
            if frame.pts is None:
                continue
            if not run.continues(frame):
                covered += run.place(waveform, start_seconds)
                run = SoundRun(sample_rate)
            run.add(frame)
    covered += run.place(waveform, start_seconds)
    return waveform, min(1.0, covered / num_samples)


class SoundRun:
    """Sound without gaps, resampled to mono at `sample_rate` (Hz) in one piece.

    Channels are averaged, so that full scale remains full scale.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._resampler: AudioResampler | None = None
        self._pieces: list[np.ndarray] = []
        self._start_seconds = 0.0
        self._next_seconds = 0.0
        self._form: tuple[str, str, int] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self._form is None

    def continues(self, frame: AudioFrame) -> bool:
        """Whether a frame continues this sound without a gap, in the same format."""
        if self._form is None:
            return True
        gap_seconds = abs((frame.time or 0.0) - self._next_seconds)
        return self._form == sound_form(frame) and gap_seconds < GAP_SECONDS

    def add(self, frame: AudioFrame) -> None:
        """Appends a frame."""
        if self._form is None:
            self._form = sound_form(frame)
            self._start_seconds = self._next_seconds = frame.time or 0.0
            if self._form != ("fltp", "mono", self._sample_rate):
                self._resampler = AudioResampler(
                    "fltp", "mono", self._sample_rate, options={"rematrix_maxval": "1"}
                )
        self._next_seconds += frame.samples / frame.sample_rate
        self._take(self._resampler.resample(frame) if self._resampler is not None else [frame])

    def _take(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            plane: Any = frame.planes[0]
            self._pieces.append(np.frombuffer(plane, np.float32, frame.samples))

    def place(self, waveform: np.ndarray, start_seconds: float) -> int:
        """Writes the sound into a waveform from `start_seconds` on; number of its samples."""
        if self._resampler is not None:
            self._take(self._resampler.resample(None))
        if not self._pieces:
            return 0
        samples = np.concatenate(self._pieces)
        offset = round((self._start_seconds - start_seconds) * self._sample_rate)
        first, last = max(0, offset), min(len(waveform), offset + len(samples))
        if last <= first:
            return 0
        waveform[first:last] = samples[first - offset : last - offset]
        return last - first


def sound_form(frame: AudioFrame) -> tuple[str, str, int]:
    """Sample format, channel layout and rate (Hz) that a resampler needs."""
    return frame.format.name, frame.layout.name, frame.sample_rate
