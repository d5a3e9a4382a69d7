"""Rows of csv and tsv files with their line numbers, so that errors name file and line."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from vatt.errors import Fault, UserError
from vatt.system.files import write_atomically

csv.field_size_limit(1 << 24)  # bytes of a cell: the transcript of a talk has more than 128 kB
Row = tuple[int, list[str]]  # its first line in the file, from 1, and its cells


def read_rows(path: Path) -> Iterator[Row]:
    """Reads the rows of a csv file that are not empty; cells are stripped of blanks.

    Args:
        path: csv file in UTF-8, with or without byte order mark, with any line ends.

    Raises:
        UserError: the file does not exist, has another encoding, or an unclosed quote.
    """
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # strict: a quote that is never closed would swallow the rest of the file
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            for cells in reader:
                first, line = line + 1, reader.line_num
                if any(cell.strip() for cell in cells):
                    yield first, [cell.strip() for cell in cells]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): correct the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line + 1}: cannot be read as csv ({error}): quote a text with commas "
            "as a whole, and double the quotes within it"
        ) from error


def read_table(
    path: Path,
    columns: Collection[str],
    faults: list[Fault] | None = None,
    *,
    rename: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a csv file with a header: line number and cells by column of each row.

    Args:
        path: csv file in UTF-8.
        columns: Required columns.
        faults: List that collects rows with more or fewer cells than the header. None: the first
            such row raises an error.
        rename: Gives the columns of a header other names. None: they keep theirs.

    Raises:
        UserError: the file cannot be read, lacks a column, or has such a row.
    """
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    try:
        names = rename(header) if rename else header
    except UserError as error:
        raise UserError(f"{path}, line 1: {error}") from error
    _check_header(path, header, names, columns)
    for line, cells in rows:
        reason = f"has {len(cells)} columns, the header {len(header)}: quote texts with commas"
        if len(cells) == len(header):
            yield line, dict(zip(names, cells, strict=True))
        elif faults is None:
            raise UserError(f"{path}, line {line}: {reason}")
        else:
            faults.append(Fault(f"line {line}", reason))


def _check_header(
    path: Path, header: Sequence[str], names: Sequence[str], wanted: Collection[str]
) -> None:
    """Refuses a header that lacks a column or has one twice; `names`: its columns, renamed."""
    absent = [name for name in wanted if name not in names]
    if absent:
        raise UserError(
            f"{path}, line 1: lacks the column {' and '.join(absent)}: the header must name "
            f"{','.join(wanted)}, and names {','.join(header)[:200] or 'nothing'}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}, line 1: has the column {twice[0]!r} twice: rename one of them")


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes a csv file that appears whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_atomically(path, text.getvalue().encode())
