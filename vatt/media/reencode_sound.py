"""Sound of a re-encoded video: AAC, copied or encoded, with unchanged times."""

from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from vatt.media.decoder import StreamDecoder
from vatt.media.sound import Mixer, SoundTimes, check_finite
from vatt.media.streams import MediaPacket, tick_seconds
from vatt.media.write_mp4 import AAC_SAMPLE_RATES, add_aac

AAC_FRAME_SAMPLES = 1024
# What FFmpeg's AAC encoder takes as it is; of other layouts it gets two channels.
KEPT_LAYOUTS = frozenset({"mono", "stereo", "5.1"})
# A longer gap stays one: it counts as not covered, and a damaged timestamp can claim years.
FILLED_SECONDS = 0.1


def may_copy(container: InputContainer, audio: AudioStream) -> bool:
    """Whether packets of sound can be copied into an mp4 file.

    This works only for mp4 and related formats: Matroska rounds times to 1 ms, and MPEG transport
    streams add a header to each packet.
    """
    decoder = audio.codec_context
    return (
        decoder is not None
        and decoder.name == "aac"
        and decoder.profile == "LC"
        and container.format.name.startswith("mov,")
    )


class CopiedSound:
    """Copies packets of AAC after decoding them without a fault."""

    def __init__(self, out: OutputContainer, audio: AudioStream, origin_seconds: float) -> None:
        self._decoder = StreamDecoder(audio)
        self.restart = self._decoder.restart
        self._stream = out.add_stream_from_template(audio)
        self._shift = round(origin_seconds / tick_seconds(audio))

    def take(self, packet: MediaPacket | None) -> list[Any]:
        """Packets to write for a packet of the source; None ends the sound."""
        if packet is None or packet.pts is None or packet.dts is None:
            return []
        self._decoder.take(packet)
        packet.pts -= self._shift
        packet.dts -= self._shift
        packet.stream = self._stream
        return [packet]


class EncodedSound:
    """Encodes sound as AAC; gaps in its timestamps become silence, or remain gaps."""

    def __init__(self, out: OutputContainer, audio: AudioStream, origin_seconds: float) -> None:
        self._audio = audio
        self._decoder = StreamDecoder(audio)
        self.restart = self._decoder.restart
        self._origin_seconds = origin_seconds
        self._rate = audio.rate if audio.rate in AAC_SAMPLE_RATES else 48_000
        self._layout = audio.layout.name if audio.layout.name in KEPT_LAYOUTS else "stereo"
        self._stream = add_aac(out, self._rate, self._layout)
        self._times = SoundTimes()
        self._mixer: Mixer | None = None
        self._next_seconds = 0.0  # where the sound that was taken ends, on the source's clock
        self._skip = 0  # samples that overlap what is there already
        self._position: int | None = None  # of the first waiting sample, in the file to write
        self._waiting = np.zeros((len(self._stream.layout.channels), 0), np.float32)

    def take(self, packet: MediaPacket | None) -> list[Any]:
        """Packets to write for a packet of the source; None ends the sound."""
        frames = self._decoder.take(packet)
        packets: list[Any] = []
        for decoded in frames if packet is not None else [*frames, None]:
            for frame, begins in self._times.take(decoded):
                check_finite(frame, self._audio)
                packets += self._start_run(frame) if begins else []
                assert self._mixer is not None
                self._next_seconds += frame.samples / frame.sample_rate
                packets += self._append(self._mixer.resample(frame))
        return packets if packet is not None else packets + self._end()

    def _end_run(self) -> list[Any]:
        return [] if self._mixer is None else self._append(self._mixer.resample(None))

    def _start_run(self, frame: AudioFrame) -> list[Any]:
        """Follows a jump of timestamps: forward by silence or a gap, back by dropping samples."""
        packets = self._end_run()
        self._mixer = Mixer(self._layout, self._rate)
        self._next_seconds = self._next_seconds if frame.time is None else frame.time
        place = round((self._next_seconds - self._origin_seconds) * self._rate)
        if self._position is None:
            self._position = place
        gap = place - self._position - self._waiting.shape[1]
        self._skip = max(0, -gap)
        if gap > FILLED_SECONDS * self._rate:
            # The encoder looks one frame back: one of silence keeps the gap from what was before.
            packets += self._add(self._silence(AAC_FRAME_SAMPLES))
            packets += self._add(self._silence(-self._waiting.shape[1] % AAC_FRAME_SAMPLES))
            self._position = place
        elif gap > 0:
            packets += self._add(self._silence(gap))
        return packets

    def _silence(self, num_samples: int) -> np.ndarray:
        return np.zeros((len(self._waiting), num_samples), np.float32)

    def _append(self, frames: list[AudioFrame]) -> list[Any]:
        packets = []
        for frame in frames:
            samples = frame.to_ndarray()
            packets += self._add(samples[:, self._skip :])
            self._skip = max(0, self._skip - samples.shape[1])
        return packets

    def _add(self, samples: np.ndarray) -> list[Any]:
        """Encodes all complete frames; the rest waits for more samples."""
        self._waiting = np.concatenate([self._waiting, samples], axis=1)
        packets = []
        while self._waiting.shape[1] >= AAC_FRAME_SAMPLES:
            packets += self._encode(AAC_FRAME_SAMPLES)
        return packets

    def _encode(self, num_samples: int) -> list[Any]:
        assert self._position is not None
        samples = np.ascontiguousarray(self._waiting[:, :num_samples])
        frame = AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = self._position
        self._waiting = self._waiting[:, num_samples:]
        self._position += num_samples
        packets: list[Any] = self._stream.encode(frame)
        return packets

    def _end(self) -> list[Any]:
        packets = self._end_run()
        if self._waiting.shape[1]:
            packets += self._encode(self._waiting.shape[1])
        return packets + (self._stream.encode(None) if self._mixer is not None else [])
