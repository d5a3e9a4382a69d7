"""Reading of the official code's vocabulary file."""

from pathlib import Path

from vatt.errors import UserError

OFFICIAL_PADDING, OFFICIAL_UNKNOWN = "<pad>", "<unk>"
OFFICIAL_SIGNS = (OFFICIAL_PADDING, "<bos>", "<eos>", OFFICIAL_UNKNOWN)  # it wants all four
PADDING_ID = 0  # what models mask


def read_vocabulary(path: Path) -> dict[str, int]:
    """Reads the ids of words from an official vocabulary.

    Raises:
        UserError: the file is not such a vocabulary.
    """
    ids: dict[str, int] = {}
    lines: dict[int, int] = {}  # of each id, from 1
    for number, line in enumerate(_read_lines(path), start=1):
        word, index = _parse_line(line, number, path)
        if word in ids:
            raise UserError(
                f"{path}, line {number}: {word!r} is on line {lines[ids[word]]} already; each word "
                "has one id"
            )
        if index in lines:
            raise UserError(
                f"{path}, line {number}: id {index} is that of line {lines[index]} already"
            )
        ids[word] = index
        lines[index] = number
    _check_ids(ids, path)
    return ids


def _check_ids(ids: dict[str, int], path: Path) -> None:
    if missing := [sign for sign in OFFICIAL_SIGNS if sign not in ids]:
        raise UserError(
            f"{path} lacks {', '.join(missing)}: an official vocabulary has a line for each of "
            f"{', '.join(OFFICIAL_SIGNS)}, {OFFICIAL_PADDING} as id {PADDING_ID}"
        )
    if ids[OFFICIAL_PADDING] != PADDING_ID:
        raise UserError(
            f"{path}: {OFFICIAL_PADDING} has id {ids[OFFICIAL_PADDING]}, but models take id "
            f"{PADDING_ID} for padding: it must come first"
        )
    if gaps := sorted(set(range(len(ids))) - set(ids.values())):
        raise UserError(
            f"{path} has {len(ids)} words but none with id {gaps[0]}: ids must be 0 to "
            f"{len(ids) - 1}, without gaps"
        )


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"no vocabulary {path}: correct the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}): give a text file of one word per line"
        ) from error
    if not text.strip():
        raise UserError(f"{path} is empty: give a text file of one word per line")
    return text.removesuffix("\n").split("\n")  # not splitlines, which splits at more than "\n"


def _parse_line(line: str, number: int, path: Path) -> tuple[str, int]:
    """Word of a line (may be empty, and then never occurs) and its id."""
    *indices, word = line.strip().split(" ")
    try:
        (index,) = map(int, indices) if indices else (number - 1,)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number}: {line.strip()!r} is neither a word nor an id, a space and a "
            "word; words hold no spaces"
        ) from error
    if word != word.lower():
        raise UserError(
            f"{path}, line {number}: {word!r} is not in lower case, as the words of captions are"
        )
    return word, index
