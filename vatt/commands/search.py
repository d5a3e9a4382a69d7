"""The command `vatt search`: the segments nearest to words, a sound, a video or an image."""

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from vatt.config.checks import at_least
from vatt.config.options import Backend
from vatt.config.spaces import MediaModality, Space
from vatt.errors import UserError

if TYPE_CHECKING:
    from vatt.search.index import Distinct


def search(
    index: Path,
    query: tuple[str, ...],
    *,
    k: Annotated[int, "-k", at_least(1)] = 5,
    html: Annotated[Path | None, "PAGE"] = None,
    as_json: Annotated[bool, "--json"] = False,
    as_csv: Annotated[bool, "--csv"] = False,
    modality: MediaModality | None = None,
    space: Space | Literal["none"] | None = None,
    per_file: bool | None = None,
    all_windows: bool = False,
    text: bool = False,
    file: bool = False,
    query_modality: MediaModality | None = None,
    exact: bool = False,
    model: str | None = None,
    media: Annotated[Path | None, "FOLDER"] = None,
    device: str = "auto",
    backend: Backend = "torch",
) -> int:
    """Finds the windows most similar to a text, a sound, a video or an image.

    The best moment of each file is shown, and how many further moments of the file are as good as
    the last hit. z is the number of standard deviations by which a score is above the mean score of
    all windows.

    Args:
        index: Folder that `vatt index` wrote.
        query: Text, of one or more words; a media file or a URL.
        k: Number of hits to show.
        html: Page to write, which plays the hits. None: no page.
        as_json: Print JSON instead of a table.
        as_csv: Print CSV instead of a table.
        modality: Search in pictures (video) or sound (audio). None: video.
        space: Common space; none: features of the backbone. None: the one that query and index
            share.
        per_file: Show only the best moment of each file, or all moments. None: per file if the
            index has several.
        all_windows: Show all windows, also those that overlap.
        text: Treat the query as text, even if a file has this name.
        file: Treat the query as a file.
        query_modality: Use the picture (video) or the sound (audio) of a query that is a video.
            None: the picture if it has one.
        exact: Compare with every row, even if the index allows an approximate search.
        model: Present location of the model. None: as stored in the index.
        media: Present folder of the media. None: as stored in the index.
        device: auto, cpu, cuda or mps.
        backend: torch; or onnx, which runs the towers that `vatt export` wrote into the folder of
            the model.
    """
    from vatt.search.answer import Answer
    from vatt.search.index import Index
    from vatt.search.query import read_query, unknown_words

    _refuse_pairs(
        {"--per-file": bool(per_file), "--all-windows": all_windows},
        {"--text": text, "--file": file},
        {"--json": as_json, "--csv": as_csv},
    )
    words = " ".join(query)
    found = Index(index, model=model, media=media, device=device, backend=backend)
    asked = read_query(words, "text" if text else "file" if file else None, query_modality)
    array, vector = found.encode(asked, modality, space)
    if per_file is None:
        per_file = found.num_files > 1
    distinct: Distinct = "window" if all_windows else "file" if per_file else "place"
    hits = found.near(vector, array, k, distinct, exact=exact)
    if asked.modality == "text":
        unknown = unknown_words(found.extractor.tokenizer, words)
        if unknown:
            print(f"not known to the model: {', '.join(unknown)}", file=sys.stderr)
    if (few := found.caution()) is not None:
        print(few, file=sys.stderr)
    answer = Answer(
        query=words,
        query_modality=asked.modality,
        array=array,
        search="approximately" if found.is_approximate(array) and not exact else "exactly",
        hits=hits,
        scale=found.scale(vector, array),
    )
    if as_json:
        print(json.dumps(answer.to_json(), indent=1, ensure_ascii=False))
    elif as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(answer.to_rows())
    else:
        print(answer)
    if html is not None:
        from vatt.search.page import write_page

        html.parent.mkdir(parents=True, exist_ok=True)
        faults = write_page(html, answer, found.media)
        print(f"{html}: open it in a browser", file=sys.stderr)
        for fault in faults:
            print(f"does not play: {fault} (--media FOLDER)", file=sys.stderr)
    return 0


def _refuse_pairs(*pairs: dict[str, bool]) -> None:
    """Refuses options that exclude each other."""
    for pair in pairs:
        if all(pair.values()):
            raise UserError(f"{' and '.join(pair)} exclude each other: give one of them", 2)
