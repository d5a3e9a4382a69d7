import json
import pickle
import subprocess
import sys

import pytest
import torch

from vatt.errors import UserError
from vatt.text import Tokenizer

CAPTIONS = [
    "A red square falls, slowly!",
    "a RED circle",
    "the dog's ball - don't",
    "a square",
    "",
    "…",
]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=100)


def test_frequent_words_get_low_ids_and_ties_are_alphabetical(tokenizer):
    words = ["a", "red", "square", "ball", "circle", "dogs", "dont", "falls", "slowly", "the"]
    ids = tokenizer.encode(words, max_words=1)[:, 0]
    assert ids.tolist() == list(range(2, 12))
    assert tokenizer.vocab_size == 12


def test_case_punctuation_and_spaces_do_not_matter(tokenizer):
    plain, written = tokenizer.encode(["the dogs ball", "  THE\tdog's — _ball_?! "], max_words=5)
    assert plain.tolist() == written.tolist()
    assert plain.tolist()[3:] == [0, 0]


def test_captions_are_cut_and_padded_to_int64_rows(tokenizer):
    ids = tokenizer.encode(["a red square falls", "a", "", "?!"], max_words=3)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[2, 3, 4], [2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert tokenizer.encode([], max_words=3).shape == (0, 3)


def test_unknown_words_are_one_and_keep_their_place(tokenizer):
    ids = tokenizer.encode(["a blue square"], max_words=4)
    assert ids.tolist() == [[2, 1, 4, 0]]
    assert tokenizer.decode(ids) == ["a [UNK] square"]


def test_words_that_look_like_special_tokens_are_ordinary_words(tokenizer):
    assert tokenizer.encode(["[PAD] a [UNK]"], max_words=3).tolist() == [[1, 2, 1]]


def test_decoding_gives_the_cleaned_caption(tokenizer):
    ids = tokenizer.encode(CAPTIONS, max_words=16)
    assert tokenizer.decode(ids) == [
        "a red square falls slowly",
        "a red circle",
        "the dogs ball dont",
        "a square",
        "",
        "",
    ]


def test_vocabulary_keeps_the_most_frequent_words_within_its_size():
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=4)
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode(["a red square"], max_words=3).tolist() == [[2, 3, 1]]


def test_vocabulary_does_not_depend_on_the_order_of_captions(tmp_path):
    for name, captions in (("one", CAPTIONS), ("two", CAPTIONS[::-1])):
        Tokenizer.train(captions, vocab_size=8).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_words_of_other_languages_are_words():
    tokenizer = Tokenizer.train(["ÉTÉ ёлка 夏"], vocab_size=10)
    assert tokenizer.encode(["été, Ёлка. 夏"], max_words=3).ne(1).all()


def test_half_an_emoji_is_left_out_of_a_caption():
    caption = json.loads('"a \\ud83d red square\\ud83d"')
    tokenizer = Tokenizer.train([caption], vocab_size=10)
    assert tokenizer.vocab_size == 5
    assert tokenizer.decode(tokenizer.encode([caption], max_words=5)) == ["a red square"]


def test_saved_tokenizer_loads_in_our_class_and_in_the_library(tokenizer, tmp_path):
    import tokenizers

    tokenizer.save(tmp_path / "tokenizer.json")
    expected = tokenizer.encode(CAPTIONS, max_words=16)
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode(CAPTIONS, 16).equal(expected)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("a red square").ids == [2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_pickled_tokenizer_gives_the_same_ids(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(CAPTIONS, 16).equal(tokenizer.encode(CAPTIONS, 16))


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer .*gone.json: correct the path"):
        Tokenizer.load(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text('{"no": "tokenizer"}')
    with pytest.raises(UserError, match=r"bad.json is not a tokenizer that vatt saved"):
        Tokenizer.load(tmp_path / "bad.json")


def test_tokenizer_with_other_padding_is_refused():
    import tokenizers

    model = tokenizers.models.WordLevel({"a": 0, "[PAD]": 1, "[UNK]": 2}, unk_token="[UNK]")
    with pytest.raises(ValueError, match=r"\[PAD\] as id 0 and \[UNK\] as id 1, has \(1, 2\)"):
        Tokenizer(tokenizers.Tokenizer(model))


def test_captions_without_words_are_refused():
    with pytest.raises(ValueError, match="no word to train"):
        Tokenizer.train(["", "?!"], vocab_size=10)
    with pytest.raises(ValueError, match="at least 3, got 2"):
        Tokenizer.train(CAPTIONS, vocab_size=2)


def test_forked_workers_encode_without_a_warning_of_the_library():
    program = (
        "import os\nfrom vatt.text import Tokenizer\n"
        "tokenizer = Tokenizer.train(['a red square'] * 1000, 100)\n"
        "tokenizer.encode(['a red square'] * 1000, 16)\n"
        "child = os.fork()\n"
        "tokenizer.encode(['a red square'] * 10, 16)\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
