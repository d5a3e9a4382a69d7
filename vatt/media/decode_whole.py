"""A file decoded from start to end, to find its damage."""

from typing import TYPE_CHECKING, Any

from vatt.system.workers import tell_alive

if TYPE_CHECKING:
    from av.packet import Packet

    from vatt.media.source import FileRange


END_TOLERANCE_SECONDS = 0.5  # containers round durations; a lost end is longer


def decode_whole(source: "FileRange") -> int:
    """Decodes all pictures and all sound of a file; the number of pictures.

    Raises:
        MediaError: no picture and no sound, or damage anywhere.
    """
    from vatt.media.opening import open_media
    from vatt.media.source import Damage
    from vatt.media.streams import audio_stream, video_stream

    with open_media(source) as container:
        streams = [s for s in (video_stream(container), audio_stream(container)) if s is not None]
        if not streams:
            raise Damage("has no picture or sound")
        num_decoded = dict.fromkeys((stream.index for stream in streams), 0)
        end_seconds = 0.0
        for packet in container.demux(streams):
            num_decoded[packet.stream.index] += _decode_packet(packet)
            tell_alive()
            if packet.size and packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                end_seconds = max(end_seconds, float(end))
        for stream in streams:
            if not num_decoded[stream.index]:
                raise Damage(f"has a {stream.type} stream that cannot be decoded")
        _check_end(container, end_seconds)
        return sum(num_decoded[s.index] for s in streams if s.type == "video")


def _decode_packet(packet: "Packet[Any]") -> int:
    """Decodes a packet, or what the decoder holds back at the end; the number of frames."""
    from av.error import FFmpegError

    from vatt.media.decoder import prepare_decoder
    from vatt.media.source import Damage

    try:
        frames = prepare_decoder(packet.stream).decode(packet if packet.size else None)
    except FFmpegError as error:
        frames, reason = [], f" ({error.strerror})"
    else:
        reason = ""
    if reason or packet.is_corrupt or any(frame.is_corrupt for frame in frames):
        seconds = float((packet.pts or 0) * (packet.time_base or 0))
        raise Damage(f"its {packet.stream.type} is damaged at {seconds:.2f} s{reason}")
    return len(frames)


def _check_end(container: Any, end_seconds: float) -> None:
    """Refuses a file that says it is longer than what it holds."""
    from vatt.media.source import Damage
    from vatt.media.streams import header_duration_seconds, origin_seconds

    duration = header_duration_seconds(container)
    if not duration:
        return
    promised = origin_seconds(container) + duration
    if promised - end_seconds > END_TOLERANCE_SECONDS:
        raise Damage(
            f"is incomplete: it says it ends at {promised:.2f} s, and ends at {end_seconds:.2f} s"
        )
