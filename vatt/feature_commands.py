"""Commands from media to features to answers: extract, index, search."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vatt.arguments import not_negative, positive, share
from vatt.machine import num_cores

if TYPE_CHECKING:
    from vatt.search import Hit, Index

SPACES = ("va", "vt", "joint", "none")


def extract(argv: Sequence[str]) -> int:
    """`vatt extract SRC… -o OUT --model MODEL`; 1 for failures under --strict."""
    arguments = _extract_parser().parse_args(argv)
    from vatt.extract import ExtractOptions
    from vatt.extract_ranks import FAILURES
    from vatt.extract_ranks import extract as extract_features

    workers = arguments.workers
    if workers is None:  # the others compute; under torchrun several share the machine
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = max(1, (num_cores() - 1) // local)
    options = ExtractOptions(
        window_seconds=arguments.window_seconds,
        hop_seconds=arguments.hop_seconds,
        modalities=arguments.modalities and tuple(arguments.modalities),
        space=None if arguments.space == "none" else arguments.space,
        return_tokens=arguments.tokens,
        batch_size=arguments.batch_size,
        num_workers=workers,
        file_format=arguments.format,
    )
    report = extract_features(
        arguments.sources,
        arguments.out,
        arguments.model,
        options,
        device=arguments.device,
        dtype=arguments.dtype,
        show_progress=sys.stderr.isatty(),
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"{arguments.out}: {report}")
        if report.failures:
            print(f"{arguments.out / FAILURES} has the reasons of all that failed")
    return int(arguments.strict and bool(report.failures))


def _extract_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vatt extract",
        description="Vectors of windows of many media, with their times. A second run makes only "
        "what is missing, has changed, or was made with other settings or another model.",
        epilog="`torchrun --nproc-per-node 8 --no-python vatt extract …` shares the work.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="folder of media or shards, media file, 'pattern/**/*.mp4', list.txt of paths, URL",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--model", required=True, help="model folder, .ckpt, or org/name of the Hugging Face Hub"
    )
    parser.add_argument(
        "--window-seconds", type=float, metavar="SECONDS", help="default: as in training"
    )
    parser.add_argument(
        "--hop-seconds", type=float, metavar="SECONDS", help="default: one after the other"
    )
    parser.add_argument("--modalities", nargs="+", choices=("video", "audio"))
    parser.add_argument(
        "--space",
        choices=("all", "va", "vt", "joint", "none"),
        default="all",
        help="which common space; none: features of the backbone",
    )
    parser.add_argument("--tokens", action="store_true", help="of every token; --space none")
    parser.add_argument("--format", choices=("npz", "safetensors", "parquet"), default="npz")
    parser.add_argument("--batch-size", type=positive, default=8, help="windows at a time")
    parser.add_argument("--workers", type=not_negative, help="processes that read media")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if anything failed")
    return parser


def index(argv: Sequence[str]) -> int:
    """`vatt index FEATURES -o INDEX`."""
    arguments = _index_parser().parse_args(argv)
    from vatt.search_build import IndexOptions, build_index

    options = IndexOptions(
        modalities=arguments.modality and tuple(arguments.modality),
        spaces=arguments.space and tuple(arguments.space),
        model=arguments.model,
        media=arguments.media,
        approximate=arguments.approximate,
        least_coverage=arguments.least_coverage,
    )
    report = build_index(
        arguments.features, arguments.out, options, show_progress=sys.stderr.isatty()
    )
    print(f"{arguments.out}: {report}")
    return 0


def _index_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vatt index",
        description="What `vatt extract` wrote → an index for `vatt search`. An index that is "
        "there is made anew, and counts until the new one is complete.",
    )
    parser.add_argument("features", type=Path, help="folder that `vatt extract` wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the index")
    parser.add_argument(
        "--modality", nargs="+", choices=("video", "audio"), help="default: all that there are"
    )
    parser.add_argument(
        "--space", nargs="+", choices=SPACES, help="default: all; none: features of the backbone"
    )
    parser.add_argument("--model", help="where it lies now; default: where it lay for extract")
    parser.add_argument(
        "--media", type=Path, metavar="FOLDER", help="where the media lie now; default: as above"
    )
    parser.add_argument(
        "--least-coverage",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="leave windows out of which the file gave less (its end), default 0.2",
    )
    parser.add_argument(
        "--approximate",
        action=argparse.BooleanOptionalAction,
        help="search with faiss; default: only where there are more than a million rows",
    )
    return parser


def search(argv: Sequence[str]) -> int:
    """`vatt search INDEX QUERY`."""
    arguments = _search_parser().parse_args(argv)
    from vatt.search import Index
    from vatt.search_query import read_query, unknown_words

    found = Index(
        arguments.index, model=arguments.model, media=arguments.media, device=arguments.device
    )
    query = read_query(arguments.query, arguments.kind, arguments.query_modality)
    name, vector = found.encode(query, arguments.modality, arguments.space)
    hits = found.near(vector, name, arguments.k, arguments.distinct, exact=arguments.exact)
    how = "approximately" if found.is_approximate(name) and not arguments.exact else "exactly"
    if query.modality == "text":
        unknown = unknown_words(found.extractor.tokenizer, arguments.query)
        if unknown:
            print(f"not known to the model: {', '.join(unknown)}", file=sys.stderr)
    said = {
        "query": arguments.query,
        "query_modality": query.modality,
        "array": name,
        "search": how,
        "hits": [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, 1)],
    }
    print(json.dumps(said, indent=1, ensure_ascii=False) if arguments.json else _table(said))
    if arguments.html is not None:
        _write_page(arguments, found, said, hits)
    return 0


def _write_page(
    arguments: argparse.Namespace, found: "Index", said: dict[str, Any], hits: "list[Hit]"
) -> None:
    from vatt.search_page import write_page

    asked = None if said["query_modality"] == "text" else arguments.query
    arguments.html.parent.mkdir(parents=True, exist_ok=True)
    faults = write_page(
        arguments.html, arguments.query, _about(said), hits, found.media, asked=asked
    )
    print(f"{arguments.html}: open it in a browser", file=sys.stderr)
    for fault in faults:
        print(f"does not play: {fault} (--media FOLDER)", file=sys.stderr)


def _about(said: dict[str, Any]) -> str:
    """What was searched, in a line."""
    return f"{said['query_modality']} → {said['array']}, searched {said['search']}"


def _table(said: dict[str, Any]) -> str:
    """Hits in aligned columns."""
    from vatt.search_page import clock

    rows = [("", "score", "start", "end", "file")]
    rows += [
        (
            str(hit["rank"]),
            f"{hit['score']:.3f}",
            clock(hit["start_seconds"]),
            clock(hit["end_seconds"]),
            hit["source"],
        )
        for hit in said["hits"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    return "\n".join([_about(said), *lines])


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
