"""Decoding of a whole file, to find damage."""

import itertools

from av.audio.stream import AudioStream
from av.container import InputContainer

from vatt.media.decoder import StreamDecoder
from vatt.media.opening import open_media
from vatt.media.sound import check_finite
from vatt.media.source import Damage, MediaSource
from vatt.media.streams import (
    audio_stream,
    header_duration_seconds,
    mp3_promise_seconds,
    origin_seconds,
    packets_of,
    video_stream,
)
from vatt.system.workers import tell_alive

END_TOLERANCE_SECONDS = 0.5  # containers round durations; a lost end is longer


def decode_whole(source: MediaSource) -> int:
    """Decodes all pictures and all sound of a file; returns the number of pictures.

    Raises:
        MediaError: the file has neither picture nor sound, or is damaged.
    """
    with open_media(source) as container:
        video, audio = video_stream(container), audio_stream(container)
        streams = {stream.index: stream for stream in (video, audio) if stream is not None}
        if not streams:
            raise Damage("has no picture or sound")
        decoders = {index: StreamDecoder(stream) for index, stream in streams.items()}
        num_decoded = dict.fromkeys(streams, 0)
        end_seconds, first_byte = 0.0, None
        packets = ((one.stream_index, one) for one in packets_of(container, list(streams.values())))
        held_back = ((index, None) for index in streams)
        for index, packet in itertools.chain(packets, held_back):
            frames = decoders[index].take(packet)
            num_decoded[index] += len(frames)
            for frame in frames:
                check_finite(frame, streams[index])
            tell_alive()
            if packet is not None and first_byte is None:
                first_byte = packet.pos
            if packet is not None and packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                end_seconds = max(end_seconds, float(end))
        for stream in streams.values():
            if not num_decoded[stream.index]:
                raise Damage(f"has a {stream.type} stream that cannot be decoded")
        _check_end(container, audio, first_byte or 0, end_seconds)
        return num_decoded[video.index] if video is not None else 0


def _check_end(
    container: InputContainer, audio: AudioStream | None, first_byte: int, end_seconds: float
) -> None:
    """Refuses a file that is shorter than its header says."""
    promised = header_duration_seconds(container)
    if promised is None:
        promised = mp3_promise_seconds(container, audio, first_byte) or 0.0
    end_seconds -= origin_seconds(container)
    if promised - end_seconds > END_TOLERANCE_SECONDS:
        raise Damage(
            f"is incomplete: it says it ends at {promised:.2f} s, and ends at {end_seconds:.2f} s"
        )
