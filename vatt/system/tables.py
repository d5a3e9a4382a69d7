"""Tables of text."""

from collections.abc import Iterable, Sequence


def text_table(rows: Iterable[Sequence[str]], *, num_left: int = 1, indent: str = "") -> str:
    """Formats rows as aligned columns, separated by two blanks.

    Args:
        rows: Rows of equal length.
        num_left: Number of left-aligned columns; the others are right-aligned.
        indent: Text before each line.
    """
    import textwrap

    from tabulate import tabulate

    aligned = ["left"] * num_left
    table = tabulate(
        rows, tablefmt="plain", disable_numparse=True, stralign="right", colalign=aligned
    )
    return textwrap.indent(table, indent)
