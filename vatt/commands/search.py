"""The command `vatt search`: the segments nearest to words, a sound, a video or an image."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from vatt.config.checks import at_least
from vatt.config.spaces import Space
from vatt.errors import UserError

if TYPE_CHECKING:
    from vatt.search.index import Distinct

Media = Literal["video", "audio"]


def search(
    index: Path,
    query: str,
    *,
    k: Annotated[int, "-k", at_least(1)] = 5,
    html: Annotated[Path | None, "PAGE"] = None,
    as_json: Annotated[bool, "--json"] = False,
    modality: Media | None = None,
    space: Space | Literal["none"] | None = None,
    per_file: bool = False,
    all_windows: bool = False,
    text: bool = False,
    file: bool = False,
    query_modality: Media | None = None,
    exact: bool = False,
    model: str | None = None,
    media: Annotated[Path | None, "FOLDER"] = None,
    device: str = "auto",
) -> int:
    """Finds the windows most similar to a text, a sound, a video or an image.

    Of overlapping windows of a file only the best one is shown, so that each hit is a different
    place.

    Args:
        index: Folder that `vatt index` wrote.
        query: Text, a media file or a URL.
        k: Number of hits to show.
        html: Page to write, which plays the hits.
        as_json: Print JSON instead of a table.
        modality: Search in pictures (video) or sound (audio). None: video.
        space: Common space; none: features of the backbone. None: the one that query and index
            share.
        per_file: Show only the best window of each file.
        all_windows: Also show overlapping windows.
        text: Treat the query as text, even if a file has this name.
        file: Treat the query as a file.
        query_modality: Use the picture (video) or the sound (audio) of a query that is a video.
        exact: Compare with every row, even if the index allows an approximate search.
        model: Present location of the model. None: as stored in the index.
        media: Present folder of the media. None: as stored in the index.
        device: auto, cpu, cuda or mps.
    """
    from vatt.search.answer import Answer
    from vatt.search.index import Index
    from vatt.search.query import read_query, unknown_words

    if (per_file and all_windows) or (text and file):
        pair = "--per-file and --all-windows" if per_file and all_windows else "--text and --file"
        raise UserError(f"{pair} exclude each other: give one of them", 2)
    found = Index(index, model=model, media=media, device=device)
    asked = read_query(query, "text" if text else "file" if file else None, query_modality)
    array, vector = found.encode(asked, modality, space)
    distinct: Distinct = "file" if per_file else "window" if all_windows else "place"
    hits = found.near(vector, array, k, distinct, exact=exact)
    if asked.modality == "text":
        unknown = unknown_words(found.extractor.tokenizer, query)
        if unknown:
            print(f"not known to the model: {', '.join(unknown)}", file=sys.stderr)
    answer = Answer(
        query=query,
        query_modality=asked.modality,
        array=array,
        search="approximately" if found.is_approximate(array) and not exact else "exactly",
        hits=hits,
    )
    print(json.dumps(answer.to_json(), indent=1, ensure_ascii=False) if as_json else answer)
    if html is not None:
        from vatt.search.page import write_page

        html.parent.mkdir(parents=True, exist_ok=True)
        faults = write_page(html, answer, found.media)
        print(f"{html}: open it in a browser", file=sys.stderr)
        for fault in faults:
            print(f"does not play: {fault} (--media FOLDER)", file=sys.stderr)
    return 0
