"""Sound of a re-encoded video: AAC, copied or encoded, with unchanged times."""

from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from vatt.media.decoder import decode_packet, prepare_decoder
from vatt.media.sound import GAP_SECONDS, sound_form
from vatt.media.source import Damage
from vatt.media.streams import MediaPacket, tick_seconds
from vatt.media.write_mp4 import AAC_BITS_PER_SAMPLE, AAC_SAMPLE_RATES

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
        self._audio = audio
        self._stream = out.add_stream_from_template(audio)
        self._shift = round(origin_seconds / tick_seconds(audio))

    def take(self, packet: MediaPacket | None) -> list[Any]:
        """Packets to write for a packet of the source; None ends the sound."""
        if packet is None or packet.pts is None or packet.dts is None:
            return []
        decode_packet(prepare_decoder(self._audio), packet, self._audio)
        packet.pts -= self._shift
        packet.dts -= self._shift
        packet.stream = self._stream
        return [packet]


class EncodedSound:
    """Encodes sound as AAC; gaps in its timestamps become silence, or remain gaps."""

    def __init__(self, out: OutputContainer, audio: AudioStream, origin_seconds: float) -> None:
        self._audio = audio
        self._origin_seconds = origin_seconds
        rate = audio.rate if audio.rate in AAC_SAMPLE_RATES else 48_000
        layout = audio.layout.name if audio.layout.name in KEPT_LAYOUTS else "stereo"
        stream = out.add_stream("aac", rate=rate, layout=layout, options={"aac_coder": "fast"})
        stream.bit_rate = AAC_BITS_PER_SAMPLE * rate * len(stream.layout.channels)
        self._stream, self._rate, self._layout = stream, rate, layout
        self._resampler: AudioResampler | None = None
        self._form: tuple[str, str, int] | None = None
        self._next_seconds = 0.0  # where the sound that was taken ends, on the source's clock
        self._skip = 0  # samples that overlap what is there already
        self._position: int | None = None  # of the first waiting sample, in the file to write
        self._waiting = np.zeros((len(stream.layout.channels), 0), np.float32)

    def take(self, packet: MediaPacket | None) -> list[Any]:
        """Packets to write for a packet of the source; None ends the sound."""
        try:
            frames = decode_packet(prepare_decoder(self._audio), packet, self._audio)
        except Damage:
            # a recording that begins amid a stream may begin with half a packet
            if packet is None or self._form is not None:
                raise
            return []
        packets = [packet for frame in frames for packet in self._take_frame(frame)]
        return packets if packet is not None else packets + self._end()

    def _take_frame(self, frame: AudioFrame) -> list[Any]:
        if frame.pts is None:
            return []
        packets = [] if self._continues(frame) else self._start_run(frame)
        assert self._resampler is not None
        self._next_seconds += frame.samples / frame.sample_rate
        return packets + self._append(self._resampler.resample(frame))

    def _continues(self, frame: AudioFrame) -> bool:
        gap_seconds = abs((frame.time or 0.0) - self._next_seconds)
        return self._form == sound_form(frame) and gap_seconds < GAP_SECONDS

    def _start_run(self, frame: AudioFrame) -> list[Any]:
        """Follows a jump of timestamps: forward by silence or a gap, back by dropping samples."""
        packets = (
            self._append(self._resampler.resample(None)) if self._resampler is not None else []
        )
        self._resampler = AudioResampler(
            "fltp", self._layout, self._rate, options={"rematrix_maxval": "1"}
        )
        self._form = sound_form(frame)
        self._next_seconds = frame.time or 0.0
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
        packets = (
            self._append(self._resampler.resample(None)) if self._resampler is not None else []
        )
        if self._waiting.shape[1]:
            packets += self._encode(self._waiting.shape[1])
        return packets + (self._stream.encode(None) if self._form is not None else [])
