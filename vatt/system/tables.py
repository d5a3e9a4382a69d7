"""Tables of text."""

from collections.abc import Iterable, Sequence


def text_table(rows: Iterable[Sequence[str]], *, num_left: int = 1, indent: str = "") -> str:
    """Aligned columns, two blanks apart.

    Args:
        rows: Of equal length.
        num_left: Columns that are flush left; the others are flush right.
        indent: Before each line.
    """
    import textwrap

    from tabulate import tabulate

    aligned = ["left"] * num_left
    table = tabulate(
        rows, tablefmt="plain", disable_numparse=True, stralign="right", colalign=aligned
    )
    return textwrap.indent(table, indent)
