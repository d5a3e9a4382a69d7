"""Page of a search: one file that plays the hits."""

import io
import tempfile
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vatt.errors import MediaError, ShardError
from vatt.media.clip import probe, read_frames, read_waveform
from vatt.media.source import MediaSource, source_name
from vatt.media.write_mp4 import write_mp4
from vatt.pages.pictures import encode_png, paint_sound
from vatt.pages.templates import Tile, data_uri, write_html
from vatt.search.answer import Answer, clock
from vatt.search.index import Hit

SHORT_SIDE = 240  # pixels of a player, or fewer
MOST_RATE = 25.0  # frames/s
MOST_FRAMES = 250  # 10 s of these; longer segments play with fewer a second
LEAST_SECONDS = 0.1  # for a still image
MOST_SECONDS = 60.0  # of a segment; the rest is cut off
SAMPLE_RATE = 32_000  # Hz
MEDIA_BUDGET_BYTES = 30_000_000  # of all players; base64 makes 4 bytes of 3


def write_page(path: Path, answer: Answer, media: Callable[[Hit], MediaSource]) -> list[str]:
    """Writes a page with a player for each hit; it needs no network and no other file.

    Args:
        path: The page.
        answer: The hits to show.
        media: Function that returns the media of a hit.

    Returns:
        Reasons why some hits do not play.
    """
    budget, faults, tiles = MEDIA_BUDGET_BYTES, [], []
    for place, hit in enumerate(answer.hits, 1):
        lines = [(f"{clock(hit.start_seconds)} – {clock(hit.end_seconds)}", ""), (hit.file, "")]
        tile = Tile()
        try:
            if budget <= 0:
                raise MediaError(hit.source, "comes after as many clips as a page can hold")
            tile = encode_tile(media(hit), hit.start_seconds, hit.end_seconds)
            budget -= len(tile.video + tile.sound) * 3 // 4
        except (MediaError, ShardError) as error:
            faults.append(str(error))
            lines.append((f"does not play: {error}", ""))
        name, score = f"{place}. {hit.source}", f"{hit.score:.3f}"
        tiles.append(replace(tile, name=name, value=score, lines=lines))
    query = None
    if answer.query_modality != "text":
        query = replace(encode_tile(answer.query, 0.0, MOST_SECONDS), name="the query")
    write_html(
        path,
        "clips.html",
        title=answer.query,
        about=answer.about,
        policy="img-src data:; media-src data:",
        width=17,
        query=query,
        clips=tiles,
        figures=(),
    )
    return faults


def encode_tile(source: MediaSource, start_seconds: float, end_seconds: float) -> Tile:
    """Encodes only the window of a hit as a small clip for a page.

    Raises:
        MediaError: the file cannot be read.
    """
    info = probe(source)
    seconds = min(end_seconds, info.duration_seconds) - start_seconds
    seconds = max(LEAST_SECONDS, min(seconds, MOST_SECONDS))
    waveform = None
    if info.has_audio:
        num_samples = max(1, round(seconds * SAMPLE_RATE))
        waveform, _ = read_waveform(
            source, start_seconds=start_seconds, num_samples=num_samples, sample_rate=SAMPLE_RATE
        )
    if info.has_video:
        rate = min(info.frame_rate or MOST_RATE, MOST_RATE, MOST_FRAMES / seconds)
        frames, _ = read_frames(
            source,
            start_seconds=start_seconds,
            num_frames=max(1, round(seconds * rate)),
            frame_rate=rate,
            short_side=min(SHORT_SIDE, info.width or SHORT_SIDE, info.height or SHORT_SIDE),
        )
        return Tile(video=data_uri(_mp4(frames, rate, waveform), "video/mp4"))
    if waveform is None:
        raise MediaError(source_name(source), "has neither picture nor sound here")
    spectrogram = data_uri(encode_png(paint_sound(waveform, SAMPLE_RATE)), "image/png")
    return Tile(sound=data_uri(_wav(waveform), "audio/wav"), pictures=[spectrogram])


def _mp4(frames: Tensor, rate: float, waveform: Tensor | None) -> bytes:
    """Pictures and sound as H.264 and AAC, which browsers play."""
    height, width = (size // 2 * 2 for size in frames.shape[1:3])  # as H.264 wants them
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        pictures = frames[:, :height, :width]
        write_mp4(path, pictures, rate, waveform=waveform, sample_rate=SAMPLE_RATE)
        return path.read_bytes()


def _wav(waveform: Tensor) -> bytes:
    """A mono file of 16-bit samples."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((waveform.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes())
    return content.getvalue()
