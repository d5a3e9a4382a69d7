"""Tables as text."""

import textwrap
from collections.abc import Iterable, Sequence

from tabulate import tabulate


def text_table(rows: Iterable[Sequence[str]], *, num_left: int = 1, indent: str = "") -> str:
    """Formats rows as aligned columns, two spaces apart.

    Args:
        rows: Rows of cells, all of the same length.
        num_left: Number of left-aligned columns; the others are right-aligned.
        indent: Text before each line.
    """
    aligned = ["left"] * num_left
    table = tabulate(
        rows, tablefmt="plain", disable_numparse=True, stralign="right", colalign=aligned
    )
    return textwrap.indent(table, indent)
