"""Word vectors of files: each format, words without vectors, files that do not fit."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_model

from vatt.config.model import VATTConfig
from vatt.config.presets import preset
from vatt.errors import VattError
from vatt.models.checkpoint import save_model
from vatt.models.text_vectors import EMBEDDING, load_text_vectors
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer

WIDTH = preset("tiny").text.d_embedding
WORDS = ["dog", "runs", "fast"]  # by falling frequency: ids 2, 3, 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["dog runs fast", "dog runs", "dog"], 10)


@pytest.fixture
def model() -> VATT:
    return make_model()


def table(model: VATT) -> torch.Tensor:
    return dict(model.named_parameters())[EMBEDDING].detach().clone()


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 0.1, (count, WIDTH)).astype(np.float32)


def write_text(path: Path, words: list[str], vectors: np.ndarray, header: bool = False) -> Path:
    lines = [f"{len(words)} {WIDTH}"] if header else []
    for word, row in zip(words, vectors, strict=True):
        lines.append(" ".join([word, *map(repr, map(float, row))]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["word2vec", "glove", "npz", "model"])
def test_words_take_their_vectors_of_a_file(
    kind: str, tmp_path: Path, tokenizer: Tokenizer, model: VATT
) -> None:
    words, vectors = ["cat", "fast", "dog", "runs", "Dog"], drawn(5)
    if kind == "npz":
        path = tmp_path / "vectors.npz"
        np.savez(path, vectors=vectors.astype(np.float64), words=np.array(words))
    elif kind == "model":
        words = ["fast", "dog", "runs"]
        other = Tokenizer.train(["fast dog runs", "fast dog", "fast"], 10)
        path, source = tmp_path / "model", make_model()
        with torch.no_grad():
            source.text_tokens.embedding.weight[2:5] = torch.from_numpy(vectors[:3])
        save_model(source, path, other)
    else:
        path = write_text(tmp_path / "vectors.txt", words, vectors, header=kind == "word2vec")
    assert load_text_vectors(model, path, tokenizer) == []
    for row, word in enumerate(WORDS, start=2):
        expected = torch.from_numpy(vectors[words.index(word)])
        assert torch.equal(table(model)[row], expected)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "model"])
def test_vectors_without_words_are_in_the_order_of_the_ids(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    vectors, path = drawn(tokenizer.vocab_size), tmp_path / f"vectors.{kind}"
    model = make_model(VATTConfig.from_dict(sized(tokenizer.vocab_size)))
    if kind == "npz":
        np.savez(path, word_embeddings=vectors)
    elif kind == "safetensors":
        save_file({"vectors": torch.from_numpy(vectors)}, path)
    else:  # converted without a vocabulary
        with torch.no_grad():
            model.text_tokens.embedding.weight.copy_(torch.from_numpy(vectors))
        save_model(model, path)
        model = make_model(model.config)
    assert load_text_vectors(model, path, tokenizer) == []
    assert torch.equal(table(model), torch.from_numpy(vectors))


def sized(vocab_size: int) -> dict[str, object]:
    values = preset("tiny").to_dict()
    values["text"]["vocab_size"] = vocab_size
    return values


def test_words_that_the_file_lacks_start_from_random_vectors_like_its_own(
    tmp_path: Path, tokenizer: Tokenizer, model: VATT, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_text(tmp_path / "vectors.txt", ["dog"], drawn(1))
    before = table(model)
    with caplog.at_level(logging.WARNING):
        assert load_text_vectors(model, path, tokenizer) == ["runs", "fast"]
    assert "has vectors for 1 of the 3 words of the tokenizer; 2 start from" in caplog.text
    assert "such as runs, fast" in caplog.text
    rest = torch.cat([table(model)[:2], table(model)[3:]])
    assert float(rest.mean()) == pytest.approx(float(drawn(1).mean()), abs=0.01)
    assert float(rest.std()) == pytest.approx(float(drawn(1).std()), rel=0.05)
    ours = torch.cat([before[:2], before[3:]])
    pair = torch.stack([ours.flatten(), rest.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.999  # the same draws, so equal on all ranks


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", f"1 {WIDTH + 4}\ndog 1\n", f"vectors of {WIDTH + 4} numbers, .* is {WIDTH}"),
        ("a.txt", "dog 1 2 3\n", f"vectors of 3 numbers, but .*d_embedding is {WIDTH}"),
        ("a.txt", "x" + " 1" * WIDTH + "\n" * 2 + "dog 1 2\n", "line 3|numbers"),
        ("a.txt", "dog" + " nan" * WIDTH, "line 1: wanted are a word and .* finite"),
        ("a.txt", "dog" + " one" * WIDTH, "line 1: wanted are a word and"),
        ("a.txt", "cat" + " 1" * WIDTH, "has none of the 5 words of the tokenizer, such as dog"),
        ("a.bin", b"3 4\n\xff\xfe\x00", "gensim turns"),
        ("a.npz", b"PK no archive", "cannot be read without running code"),
        ("a.safetensors", b"none", "is not a whole safetensors file"),
        ("missing.txt", None, "no word vectors at"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_reason(
    name: str,
    content: str | bytes | None,
    message: str,
    tmp_path: Path,
    tokenizer: Tokenizer,
    model: VATT,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    before = table(model)
    with pytest.raises(VattError, match=message):
        load_text_vectors(model, path, tokenizer)
    assert torch.equal(table(model), before)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": np.zeros((3, WIDTH), np.float32)}, "3 vectors without words, .* has 5 ids"),
        ({"vectors": np.zeros((5, WIDTH + 1))}, f"vectors of {WIDTH + 1} numbers"),
        ({"vectors": np.full((5, WIDTH), np.inf)}, "not finite"),
        ({"vectors": np.zeros((2, WIDTH)), "words": np.array(["dog"])}, "2 vectors for 1 words"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "has a, b: wanted is one `vectors`"),
        (
            {"vectors": np.zeros((1, WIDTH)), "words": np.array(["dog"], dtype=object)},
            "without running code",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_the_reason(
    arrays: dict[str, np.ndarray],
    message: str,
    tmp_path: Path,
    tokenizer: Tokenizer,
    model: VATT,
) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, **arrays)
    with pytest.raises(VattError, match=message):
        load_text_vectors(model, path, tokenizer)
