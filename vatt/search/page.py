"""Hits that play: the page of a search, and a table in a notebook."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vatt.errors import MediaError, ShardError
from vatt.media.source import MediaSource
from vatt.pages.pictures import encode_png, paint_sound
from vatt.pages.players import MOST_SECONDS, SAMPLE_RATE, read_window
from vatt.pages.templates import Tile, data_uri, render, write_html
from vatt.search.answer import Answer, clock, more_moments
from vatt.search.hits import Hit

MEDIA_BUDGET_BYTES = 30_000_000  # of all players; base64 makes 4 bytes of 3
NOTEBOOK_HITS = 10  # with players: each takes some 0.3 s, and its clip is saved with the notebook


def write_page(path: Path, answer: Answer, media: Callable[[Hit], MediaSource]) -> list[str]:
    """Writes a page with a player for each hit; it needs no network and no other file.

    Args:
        path: The page.
        answer: The hits to show.
        media: Function that returns the media of a hit.

    Returns:
        Reasons why some hits do not play.
    """
    faults, tiles = [], []
    for place, (hit, tile, fault) in enumerate(_players(answer.hits, media), 1):
        lines = [(_times(hit), ""), (hit.file, "")]
        if more := more_moments(hit):
            lines.append((more, ""))
        if fault:
            faults.append(fault)
            lines.append((f"does not play: {fault}", ""))
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


def hits_html(hits: Sequence[Hit], media: Callable[[Hit], MediaSource]) -> str:
    """Table for a notebook, as a part of a page: the first hits with players.

    The clips are in the table itself: notebooks do not serve files from everywhere.

    Args:
        hits: The hits to show, best first.
        media: Function that returns the media of a hit.
    """
    rows = [
        (f"{hit.score:.3f}", _times(hit), hit.source, tile, fault)
        for hit, tile, fault in _players(hits[:NOTEBOOK_HITS], media)
    ]
    return render("hits.html", rows=rows, num_more=len(hits) - len(rows))


def _players(
    hits: Iterable[Hit], media: Callable[[Hit], MediaSource]
) -> Iterator[tuple[Hit, Tile, str]]:
    """Hits with their players, or with the reason why they do not play."""
    budget = MEDIA_BUDGET_BYTES
    for hit in hits:
        tile, fault = Tile(), ""
        try:
            if budget <= 0:
                raise MediaError(hit.source, "comes after as many clips as a page can hold")
            tile = encode_tile(media(hit), hit.start_seconds, hit.end_seconds)
            budget -= len(tile.video + tile.sound) * 3 // 4
        except (MediaError, ShardError) as error:
            fault = str(error)
        yield hit, tile, fault


def _times(hit: Hit) -> str:
    return f"{clock(hit.start_seconds)} – {clock(hit.end_seconds)}"


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
