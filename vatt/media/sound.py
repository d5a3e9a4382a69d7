"""Sound of a clip: packets become one waveform, placed by its timestamps."""

import math
from collections.abc import Iterator
from typing import Any

import av.error
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

from vatt.media.decoder import CUT_SECONDS, Tags, at_time, decode_packet
from vatt.media.packets import Packets
from vatt.media.source import Damage
from vatt.media.streams import SHORT_ROLL_SECONDS, MediaStream, tick_seconds

# Sound that starts further from where it should follow may be a gap; containers round to 1 ms.
GAP_SECONDS = 0.02
# It is one if it lasts: old WebM muxers wrote the times of packets' ends, which come and go by half
# a long block of Vorbis (21 ms at 44.1 kHz) over a row of short blocks.
LASTING_SECONDS = 0.1
FULL_SCALE = {"u1": 128.0, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63}  # of whole numbers


def decode_waveform(
    audio: AudioStream,
    packets: Packets,
    start_seconds: float,
    num_samples: int,
    sample_rate: int,
) -> tuple[np.ndarray, float]:
    """Decodes sound to mono and places it by its timestamps; gaps are zeros.

    Returns:
        float32 `[S]`, and the share of samples, in [0, 1], that come from the file.

    Raises:
        Damage: a packet cannot be decoded, or samples are not finite.
    """
    times, runs = SoundTimes(), list[list[AudioFrame]]()
    for decoded in (*_decoded(audio, packets, start_seconds), None):
        for frame, begins in times.take(decoded):
            if begins:
                runs.append([])
            runs[-1].append(frame)
    waveform, covered = np.zeros(num_samples, np.float32), 0
    for run in runs:
        samples, run_seconds = _resampled(run, start_seconds, sample_rate)
        offset = round((run_seconds - start_seconds) * sample_rate)
        first, last = max(0, offset), min(num_samples, offset + len(samples))
        if first < last:
            waveform[first:last] = samples[first - offset : last - offset]
            covered += last - first
    if not np.isfinite(waveform).all():
        seconds = start_seconds + int(np.argmin(np.isfinite(waveform))) / sample_rate
        raise _not_finite(seconds, audio)
    return waveform, min(1.0, covered / num_samples)


def _decoded(audio: AudioStream, packets: Packets, start_seconds: float) -> Iterator[AudioFrame]:
    """Frames of a clip's packets, without incomplete packets at the two ends of a recording.

    A parser that starts amid a stream may begin with half a packet; codecs need less than half the
    shortest pre-roll. The last packet of a file may be cut off, or be something else than sound.
    """
    tick = tick_seconds(audio)
    excused_until = (start_seconds - SHORT_ROLL_SECONDS / 2) / tick
    excused_from = math.inf
    if packets.exhausted and packets.last_sound is not None and packets.last_sound.pts is not None:
        excused_from = packets.last_sound.pts - CUT_SECONDS / tick
    fault: Damage | None = None
    has_begun, tags = False, Tags()
    for packet in [*packets.audio, None]:
        pts = packet.pts if packet is not None else None
        is_late = pts is not None and pts >= excused_from
        try:
            frames = decode_packet(audio, packet, whole=not is_late)
        except Damage as damage:
            if tags.covers(packet):
                continue
            is_early = not has_begun and pts is not None and pts < excused_until
            if not is_early and not (is_late and has_begun):
                raise
            fault = damage if is_late else fault
            continue
        if frames and fault is not None:
            raise fault
        has_begun = has_begun or bool(frames)
        yield from frames


def _resampled(
    run: list[AudioFrame], start_seconds: float, sample_rate: int
) -> tuple[np.ndarray, float]:
    """Mono samples of frames without a gap between them, and the time of the first."""
    rate = run[0].sample_rate
    # the times of most of the frames count: containers round them
    num_before = np.cumsum([0, *(frame.samples for frame in run[:-1])])
    begins = [
        frame.time - before / rate
        for frame, before in zip(run, num_before, strict=True)
        if frame.time is not None
    ]
    begin_seconds = float(np.median(begins))
    skip = _samples_off_grid(run[0], start_seconds - begin_seconds, sample_rate)
    fifo = AudioFifo()  # one long frame is mixed in half the time of many short ones
    for frame in run:
        frame.pts = None
        fifo.write(frame)
    if skip:
        fifo.read(skip)
    mixer = Mixer("mono", sample_rate)
    pieces = [piece for frame in (fifo.read(), None) for piece in mixer.resample(frame)]
    return np.concatenate([piece.to_ndarray()[0] for piece in pieces]), begin_seconds + skip / rate


def _samples_off_grid(first: AudioFrame, lead_seconds: float, sample_rate: int) -> int:
    """Number of samples before a clip to leave out, so that resampling starts on its grid.

    Otherwise a clip would be shifted by up to half a sample against the same sound in another clip.
    """
    rate = first.sample_rate
    step = rate // math.gcd(rate, sample_rate)
    number = min(step, first.samples - 1, math.floor(lead_seconds * rate))
    if number <= 1:
        return 0
    places = (np.arange(number) / rate - lead_seconds) * sample_rate
    return int(np.argmin(np.abs(places - np.round(places)).round(6)))


class SoundTimes:
    """Finds where runs of sound without a gap begin.

    A frame without a timestamp follows the one before it: some packets hold several frames.
    """

    def __init__(self) -> None:
        self._form: tuple[str, str, int] | None = None
        self._next_seconds = 0.0  # where the next frame starts if there is no gap
        self._settled_seconds = 0.0  # length of the run so far
        self._waiting: list[AudioFrame] = []  # frames off their time, perhaps for a moment only

    def take(self, frame: AudioFrame | None) -> list[tuple[AudioFrame, bool]]:
        """Takes a frame, or None at the end; frames that are placed, and whether a run begins."""
        if frame is None:
            return self._place(begins=bool(self._waiting))
        if frame.pts is None and self._form is None:
            return []
        off_seconds = abs(frame.time - self._next_seconds) if frame.time is not None else 0.0
        if self._form != sound_form(frame) or off_seconds >= LASTING_SECONDS:
            placed = self._place(begins=bool(self._waiting))
            self._form, self._waiting = sound_form(frame), [frame]
            return placed + self._place(begins=True)
        is_off = off_seconds >= GAP_SECONDS or (bool(self._waiting) and frame.pts is None)
        self._next_seconds += _seconds(frame)
        self._waiting.append(frame)
        if not is_off:
            return self._place(begins=False)
        if sum(map(_seconds, self._waiting)) < LASTING_SECONDS:
            return []
        begins = self._settled_seconds >= LASTING_SECONDS  # else the frames before were off
        (first, _), *others = self._place(begins=True)
        return [(first, begins), *others]

    def _place(self, *, begins: bool) -> list[tuple[AudioFrame, bool]]:
        """Places the waiting frames; a run that begins with them sets the clock."""
        frames, self._waiting = self._waiting, []
        length = sum(map(_seconds, frames))
        if begins:
            first = frames[0].time
            self._next_seconds = (self._next_seconds if first is None else first) + length
            self._settled_seconds = 0.0
        self._settled_seconds += length
        return [(frame, begins and place == 0) for place, frame in enumerate(frames)]


def _seconds(frame: AudioFrame) -> float:
    return frame.samples / frame.sample_rate


class Mixer:
    """Resamples sound to float32 of one layout and rate; full scale remains full scale.

    FFmpeg has no mix for some layouts (9 channels: second-order ambisonics); their channels are
    averaged. So are those of stereo of the same rate, in a tenth of the time of FFmpeg's equal mix.

    Args:
        layout: FFmpeg's name for the channels of the result.
        sample_rate: Sample rate of the result, Hz.
    """

    def __init__(self, layout: str, sample_rate: int) -> None:
        self._arguments = ("fltp", layout, sample_rate)
        self._averages = False
        self._resampler = self._new()

    def _new(self) -> AudioResampler:
        return AudioResampler(*self._arguments, options={"rematrix_maxval": "1"})

    def _is_plain_stereo(self, frame: AudioFrame) -> bool:
        form, layout, rate = self._arguments
        return layout == "mono" and sound_form(frame) == (form, "stereo", rate)

    def resample(self, frame: AudioFrame | None) -> list[AudioFrame]:
        """Frames that are ready after one more; None flushes the resampler."""
        if frame is not None and self._is_plain_stereo(frame):
            frame = _average(frame)
        if frame is not None and not self._averages:
            try:
                return self._resampler.resample(frame)
            except av.error.ArgumentError:
                self._averages, self._resampler = True, self._new()
        return self._resampler.resample(_average(frame) if frame is not None else None)


def _average(frame: AudioFrame) -> AudioFrame:
    """One channel, float32: the mean of all."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    zero = 128.0 if samples.dtype == np.uint8 else 0.0
    mean = (samples.mean(axis=0, keepdims=True) - zero) / FULL_SCALE.get(samples.dtype.str[1:], 1.0)
    return _frame(mean.astype(np.float32), "fltp", "mono", frame)


def _frame(samples: np.ndarray, form: str, layout: Any, like: AudioFrame) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=form, layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = like.sample_rate, like.pts, like.time_base
    return frame


def check_finite(frame: Any, stream: MediaStream) -> None:
    """Refuses sound that is not finite: PCM of floating point can hold it.

    Raises:
        Damage: infinity or NaN.
    """
    may_hold = isinstance(frame, AudioFrame) and frame.format.name in ("flt", "fltp", "dbl", "dblp")
    if may_hold and not np.isfinite(frame.to_ndarray()).all():
        raise _not_finite(frame.time or 0.0, stream)


def _not_finite(seconds: float, stream: MediaStream) -> Damage:
    pts = round(seconds / tick_seconds(stream))
    return Damage(at_time("its audio holds values that are not finite", pts, stream))


def sound_form(frame: AudioFrame) -> tuple[str, str, int]:
    """Sample format, channel layout and rate (Hz) that a resampler needs."""
    return frame.format.name, frame.layout.name, frame.sample_rate
