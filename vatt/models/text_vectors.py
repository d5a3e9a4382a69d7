"""Word vectors that training starts from: of a file, or of another model."""

import logging
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import read_model, read_tensors, tokenizer_of
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.vocabulary import PADDING_ID
from vatt.system.bounds import check_unpacked, unpacked_bytes
from vatt.system.ranks import rank

logger = logging.getLogger(__name__)

EMBEDDING = "text_tokens.embedding.weight"
NUM_NAMED = 5  # words that the warning gives as examples
FORMATS = (
    "a text file of word2vec, an .npz with `vectors` and `words`, a .safetensors with one matrix, "
    "or a model"
)


def load_text_vectors(
    model: VATT, source: str | os.PathLike[str], tokenizer: Tokenizer
) -> list[str]:
    """Replaces the word vectors of a model by those of a file.

    The vectors of words that the file lacks are kept, scaled and shifted to the mean and the
    deviation of the file's; a warning gives their number.

    Args:
        model: Model with a text tower.
        source: One of

            - a text file of word2vec or GloVe: a word and its numbers per line, separated by
              spaces; a first line with the numbers of words and of columns is optional;
            - `.npz` with `vectors`, float `[N, D]`, and `words`, str `[N]`;
            - `.npz` or `.safetensors` with one matrix `[N, D]`, whose rows are in the order of the
              tokenizer's ids;
            - a model folder or a checkpoint, such as a converted one: words are matched by its
              tokenizer, or rows by their ids if it has none.
        tokenizer: Tokenizer of the captions.

    Returns:
        Words of the tokenizer that have no vector in the file.

    Raises:
        UserError: the file cannot be used; the message says why.
        CheckpointError: the model is damaged.

    Source: the official code starts from word2vec (`experiments/pretrain.py`,
    `restore_text_embeddings`) and does not train the vectors.
    """
    weights = dict(model.named_parameters()).get(EMBEDDING)
    if weights is None:
        raise UserError("text_vectors are given, but the model has no text: leave them out")
    found = _read_rows(Path(source), tokenizer, weights.shape[1])
    if not found:
        raise UserError(
            f"{source} has none of the {tokenizer.vocab_size} words of the tokenizer, such as "
            f"{', '.join(tokenizer.tokens[2 : 2 + NUM_NAMED])}: give vectors of the same language, "
            "with words in lower case"
        )
    rows = torch.tensor([*found])
    vectors = torch.from_numpy(np.stack([*found.values()])).to(weights)
    if not vectors.isfinite().all():
        raise UserError(f"{source} has vectors that are not finite: correct or remove them")
    with torch.no_grad():
        weights.sub_(weights.mean()).div_(weights.std().clamp(min=1e-12))
        weights.mul_(vectors.std(correction=0)).add_(vectors.mean())
        weights[rows] = vectors
    known = found.keys() | {PADDING_ID, tokenizer.unknown_id}  # these two are no words
    missing = [word for row, word in enumerate(tokenizer.tokens) if row not in known]
    if missing and rank() == 0:
        logger.warning(
            "%s has vectors for %d of the %d words of the tokenizer; %d start from random ones, "
            "such as %s",
            source,
            len(found),
            len(found) + len(missing),
            len(missing),
            ", ".join(missing[:NUM_NAMED]),
        )
    return missing


def _read_rows(path: Path, tokenizer: Tokenizer, width: int) -> dict[int, NDArray[np.float32]]:
    """Vector of each id that the file has one for."""
    if not path.exists():
        raise UserError(f"no word vectors at {path}: correct the path; wanted is {FORMATS}")
    ids = {word: row for row, word in enumerate(tokenizer.tokens)}
    if path.is_dir() or path.suffix == ".ckpt":
        matrix, words = _of_model(path)
    elif path.suffix == ".npz":
        matrix, words = _of_npz(path)
    elif path.suffix == ".safetensors":
        matrix, words = _only_matrix(read_tensors(path), path).float().numpy(), None
    else:
        return _of_text(path, ids, width)
    if matrix.ndim != 2 or matrix.shape[1] != width:
        raise _other_width(path, matrix.shape[-1], width)
    matrix = matrix.astype(np.float32)
    if words is None:
        if len(matrix) != len(ids):
            raise UserError(
                f"{path} has {len(matrix)} vectors without words, but the tokenizer has {len(ids)} "
                "ids, of which each needs one: give the tokenizer of the vectors, or an .npz with "
                "`words`"
            )
        return dict(enumerate(matrix))
    if len(words) != len(matrix):
        raise UserError(f"{path} has {len(matrix)} vectors for {len(words)} words")
    return {ids[word]: row for word, row in zip(words, matrix, strict=True) if word in ids}


def _of_model(path: Path) -> tuple[NDArray[np.float32], list[str] | None]:
    _, weights = read_model(path)
    if EMBEDDING not in weights:
        raise CheckpointError(f"{path} has no word vectors: its model has no text")
    matrix, tokenizer = weights[EMBEDDING].float().numpy(), tokenizer_of(path)
    if tokenizer is None:
        return matrix, None
    return matrix[: tokenizer.vocab_size], tokenizer.tokens


def _of_npz(path: Path) -> tuple[NDArray[np.float32], list[str] | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(path, unpacked_bytes(archive))
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read without running code from it ({error}): write `words` as an "
            "array of strings, not of objects"
        ) from error
    words = arrays.pop("words", None)
    matrix = _only_matrix(arrays, path)
    return matrix, None if words is None else [str(word) for word in words]


def _only_matrix(arrays: Mapping[str, Any], path: Path) -> Any:
    if len(arrays) != 1 and "vectors" not in arrays:
        raise UserError(f"{path} has {', '.join(arrays) or 'nothing'}: wanted is one `vectors`")
    return arrays["vectors"] if "vectors" in arrays else next(iter(arrays.values()))


def _of_text(path: Path, ids: Mapping[str, int], width: int) -> dict[int, NDArray[np.float32]]:
    """Reads a file line by line, as it can be larger than the memory; the first of two counts."""
    found: dict[int, NDArray[np.float32]] = {}
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    _check_header(path, line, width)
                    continue
                row = ids.get(word)
                if number <= 2 and len(values) != width:
                    raise _other_width(path, len(values), width)
                if row is None or row in found:
                    continue
                vector = np.array(values, dtype=np.float32)
                if len(vector) != width or not math.isfinite(float(vector.sum())):
                    raise ValueError(f"{len(vector)} numbers, of which all must be finite")
                found[row] = vector
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8: wanted is {FORMATS}. gensim turns word2vec's binary "
            "format into text (load_word2vec_format, then save_word2vec_format)"
        ) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}, line {number}: wanted are a word and {width} numbers ({error})"
        ) from error
    return found


def _check_header(path: Path, line: str, width: int) -> None:
    columns = line.split()[-1]
    if not columns.isdigit() or int(columns) != width:
        raise _other_width(path, columns, width)


def _other_width(path: Path, columns: object, width: int) -> UserError:
    return UserError(
        f"{path} has vectors of {columns} numbers, but the model's text.d_embedding is {width}: "
        "make them equal"
    )
