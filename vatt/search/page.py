"""Page of a search: one file that plays the hits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vatt.errors import MediaError, ShardError
from vatt.media.source import MediaSource
from vatt.pages.pictures import encode_png, paint_sound
from vatt.pages.players import MOST_SECONDS, SAMPLE_RATE, read_window
from vatt.pages.templates import Tile, data_uri, write_html
from vatt.search.answer import Answer, clock
from vatt.search.index import Hit

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
    window = read_window(source, start_seconds, end_seconds)
    if window.waveform is None or window.frames is not None:
        return Tile(video=data_uri(window.encode(), "video/mp4"))
    spectrogram = data_uri(encode_png(paint_sound(window.waveform, SAMPLE_RATE)), "image/png")
    return Tile(sound=data_uri(window.encode(), "audio/wav"), pictures=[spectrogram])
