"""The page of a search: one file that plays the segments found."""

import io
import tempfile
import wave
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from torch import Tensor

from vatt.errors import MediaError, ShardError
from vatt.media.clip import probe, read_frames, read_waveform
from vatt.media.source import MediaSource, source_name
from vatt.media.write_mp4 import write_mp4
from vatt.pages.pictures import data_uri, encode_png, loudness
from vatt.search.answer import Answer, clock
from vatt.search.index import Hit
from vatt.system.files import write_atomically

SHORT_SIDE = 240  # pixels of a player, or fewer
MOST_RATE = 25.0  # frames/s
MOST_FRAMES = 250  # 10 s of these; longer segments play with fewer a second
LEAST_SECONDS = 0.1  # for a still image
MOST_SECONDS = 60.0  # of a segment; the rest is cut off
SAMPLE_RATE = 32_000  # Hz
MEDIA_BUDGET_BYTES = 30_000_000  # of all players; base64 makes 4 bytes of 3
LINE_HEIGHT = 3  # pixels per band of a spectrogram

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .3rem}p{margin:.2rem 0}small,.note{opacity:.75}
ol{list-style:none;padding:0;margin:1.5rem 0;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(17rem,1fr))}
li,.asked{border:1px solid var(--line);border-radius:.5rem;padding:.6rem;background:var(--soft)}
.asked{max-width:22rem;margin-top:1rem}video,img,audio{width:100%;display:block}
video{aspect-ratio:4/3;background:#000;border-radius:.3rem}img{height:7rem;image-rendering:pixelated}
li{min-width:0;overflow-wrap:anywhere}.name{font-weight:600}.score{float:right;font-variant-numeric:tabular-nums}
"""


def write_page(path: Path, answer: Answer, media: Callable[[Hit], MediaSource]) -> list[str]:
    """Writes a page with a player for each hit; it needs no network and no other file.

    Args:
        path: The page.
        answer: The hits to show.
        media: Gives the file of a hit.

    Returns:
        Reasons why some hits do not play.
    """
    budget, faults, tiles = MEDIA_BUDGET_BYTES, [], []
    for place, hit in enumerate(answer.hits, 1):
        try:
            if budget <= 0:
                raise MediaError(hit.source, "comes after as many clips as a page can hold")
            player = render_player(media(hit), hit.start_seconds, hit.end_seconds)
            budget -= len(player) * 3 // 4
        except (MediaError, ShardError) as error:
            faults.append(str(error))
            player = f"<p class=note>does not play: {escape(str(error))}</p>"
        tiles.append(_tile(place, hit, player))
    top, title = "", escape(answer.query)
    if answer.query_modality != "text":
        player = render_player(answer.query, 0.0, MOST_SECONDS)
        top = f"<div class=asked>{player}<p class=note>the query</p></div>"
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        "img-src data:; media-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p class=note>{answer.about}</p>{top}<ol>{''.join(tiles)}</ol>"
        "</html>\n"
    )
    write_atomically(path, page.encode("utf-8"))
    return faults


def _tile(place: int, hit: Hit, player: str) -> str:
    when = f"{clock(hit.start_seconds)} – {clock(hit.end_seconds)}"
    return (
        f"<li>{player}<p><span class=score>{hit.score:.3f}</span>"
        f"<span class=name>{place}. {escape(hit.source)}</span></p><p>{when}</p>"
        f"<small>{escape(hit.file)}</small></li>"
    )


def render_player(source: MediaSource, start_seconds: float, end_seconds: float) -> str:
    """An element that plays a segment of a file and nothing else of it.

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
        uri = data_uri(_mp4(frames, rate, waveform), "video/mp4")
        return f'<video controls loop playsinline preload=auto src="{uri}"></video>'
    if waveform is None:
        raise MediaError(source_name(source), "has neither picture nor sound here")
    uri = data_uri(_wav(waveform), "audio/wav")
    return f'<img alt="" src="{_spectrogram(waveform)}"><audio controls src="{uri}"></audio>'


def _mp4(frames: Tensor, rate: float, waveform: Tensor | None) -> bytes:
    """Pictures and sound as H.264 and AAC, which browsers play."""
    height, width = (max(2, size // 2 * 2) for size in frames.shape[1:3])  # as H.264 wants them
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


def _spectrogram(waveform: Tensor) -> str:
    """Spectrogram of a sound as a picture, low notes below."""
    levels = (255 * loudness(waveform, SAMPLE_RATE)).astype(np.uint8)
    return data_uri(encode_png(levels.repeat(LINE_HEIGHT, axis=0)[..., None]), "image/png")
