"""The command `vatt index`: an index of extracted vectors."""

from pathlib import Path
from typing import Annotated

from vatt.config.options import IndexOptions


def index(features: Path, *, out: Annotated[Path, "-o"], options: IndexOptions) -> int:
    """Builds an index for `vatt search` of vectors that `vatt extract` wrote.

    An existing index is rebuilt, and remains in use until the new one is complete.

    Args:
        features: Folder that `vatt extract` wrote.
        out: Folder of the index.
        options: Vectors and search.
    """
    from vatt.search.build import build_index

    report = build_index(features, out, options, show_progress=True)
    print(f"{out}: {report}")
    return 0
