"""Commands from media to features to answers: extract, index, search."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vatt.commands.arguments import positive

SPACES = ("va", "vt", "joint", "none")


def search(argv: Sequence[str]) -> int:
    """`vatt search INDEX QUERY`."""
    arguments = _search_parser().parse_args(argv)
    from vatt.search.answer import Answer
    from vatt.search.index import Index
    from vatt.search.query import read_query, unknown_words

    index = Index(
        arguments.index, model=arguments.model, media=arguments.media, device=arguments.device
    )
    query = read_query(arguments.query, arguments.kind, arguments.query_modality)
    array, vector = index.encode(query, arguments.modality, arguments.space)
    hits = index.near(vector, array, arguments.k, arguments.distinct, exact=arguments.exact)
    approximately = index.is_approximate(array) and not arguments.exact
    if query.modality == "text":
        unknown = unknown_words(index.extractor.tokenizer, arguments.query)
        if unknown:
            print(f"not known to the model: {', '.join(unknown)}", file=sys.stderr)
    answer = Answer(
        query=arguments.query,
        query_modality=query.modality,
        array=array,
        search="approximately" if approximately else "exactly",
        hits=hits,
    )
    as_json = arguments.json and json.dumps(answer.to_json(), indent=1, ensure_ascii=False)
    print(as_json or answer)
    if arguments.html is not None:
        from vatt.search.page import write_page

        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        faults = write_page(arguments.html, answer, index.media)
        print(f"{arguments.html}: open it in a browser", file=sys.stderr)
        for fault in faults:
            print(f"does not play: {fault} (--media FOLDER)", file=sys.stderr)
    return 0


def _search_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vatt search",
        description="The segments nearest to words, a sound, a video or an image.",
        epilog="Of windows of a file that overlap only the best is shown, so that each hit is "
        "another place.",
    )
    parser.add_argument("index", type=Path, help="folder that `vatt index` made")
    parser.add_argument("query", metavar="QUERY", help="words, a media file or a URL")
    parser.add_argument("-k", type=positive, default=5, metavar="N", help="hits, default 5")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--text", dest="kind", action="store_const", const="text", help="QUERY is words"
    )
    kind.add_argument(
        "--file", dest="kind", action="store_const", const="file", help="QUERY is a file"
    )
    parser.add_argument(
        "--query-modality", choices=("video", "audio"), help="of a video: its picture or its sound"
    )
    parser.add_argument(
        "--modality", choices=("video", "audio"), help="what is searched: pictures (default), sound"
    )
    parser.add_argument("--space", choices=SPACES, help="default: the one that both share")
    many = parser.add_mutually_exclusive_group()
    many.add_argument(
        "--per-file",
        dest="distinct",
        action="store_const",
        const="file",
        help="only the best of each file",
    )
    many.add_argument(
        "--all-windows",
        dest="distinct",
        action="store_const",
        const="window",
        help="those that overlap, too",
    )
    parser.add_argument("--exact", action="store_true", help="pass an approximate index over")
    parser.add_argument("--json", action="store_true", help="to the standard output, as JSON")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="a page that plays what is found")
    parser.add_argument("--model", help="where it lies now")
    parser.add_argument("--media", type=Path, metavar="FOLDER", help="where the media lie now")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.set_defaults(distinct="place")
    return parser
