import json
import os
import pickle
import random
import subprocess
import sys

import pytest
import torch

from vatt.errors import UserError
from vatt.preprocess.tokenizer import Tokenizer

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


def test_captions_are_as_long_as_the_longest_unless_a_length_is_given(tokenizer):
    texts = ["a red square", "ball", ""]
    assert tokenizer.encode(texts).tolist() == tokenizer.encode(texts, 3).tolist()
    assert tokenizer(texts, max_words=2).tolist() == tokenizer.encode(texts, 2).tolist()
    assert tokenizer("a red square").tolist() == tokenizer(["a red square"]).tolist()
    assert tokenizer.encode("").tolist() == [[0]]
    with pytest.raises(TypeError, match="texts are str or a list of these, got int"):
        tokenizer.encode(5)
    with pytest.raises(TypeError, match="texts are str, got int"):
        tokenizer.encode(["a", 5])


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


def changed(tokenizer, tmp_path, **parts):
    """Path of the tokenizer's file, in which some parts are others."""
    tokenizer.save(tmp_path / "tokenizer.json")
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored | parts))
    return tmp_path / "tokenizer.json"


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
SLOW = {"type": "Replace", "pattern": {"Regex": "(a|a?)+$"}, "content": ""}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": SLOW},
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 60}},
        {
            "pre_tokenizer": {
                **{"type": "Split", "pattern": SLOW["pattern"], "behavior": "Removed"},
                "invert": False,
            }
        },
        {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Right"}},
        {"truncation": {"max_length": 1}},
        {"added_tokens": [{"id": 0, "content": "a", "special": True}]},
        {"post_processor": {"type": "ByteLevel"}},
        {"decoder": DOUBLE},
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}},
    ],
)
def test_steps_that_vatt_does_not_write_are_refused_before_they_run(tokenizer, tmp_path, parts):
    (name,) = parts
    path = changed(tokenizer, tmp_path, **parts)
    with pytest.raises(
        UserError, match=rf"tokenizer.json is not a .* saved: its {name} .* none of .* vatt runs"
    ):
        Tokenizer.load(path)


def test_a_part_that_is_there_twice_is_taken_as_it_was_checked(tokenizer, tmp_path):
    path = changed(tokenizer, tmp_path)
    text = path.read_text()
    path.write_text(text.replace("{", f'{{"normalizer": {json.dumps(SLOW)}, ', 1))
    assert Tokenizer.load(path).encode(CAPTIONS, 8).equal(tokenizer.encode(CAPTIONS, 8))


def test_a_file_too_large_for_a_vocabulary_is_refused_without_being_read(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no space
    with pytest.raises(UserError, match=r"tokenizer.json is refused: .* at most 67,108,864"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_tokenizer_with_other_padding_is_refused():
    import tokenizers

    model = tokenizers.models.WordLevel({"a": 0, "[PAD]": 1, "[UNK]": 2}, unk_token="[UNK]")
    with pytest.raises(ValueError, match=r"\[PAD\] as id 0 and \[UNK\] as id 1, has \(1, 2\)"):
        Tokenizer(tokenizers.Tokenizer(model))


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_captions_without_words_are_refused(kind):
    with pytest.raises(ValueError, match="no word to train"):
        Tokenizer.train(["", "?!"], vocab_size=300, kind=kind)
    with pytest.raises(ValueError, match="no word to train"):
        Tokenizer.train([], vocab_size=300, kind=kind)


def test_vocabulary_sizes_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match="room for words, at least 3, got 2"):
        Tokenizer.train(CAPTIONS, vocab_size=2)
    with pytest.raises(ValueError, match="room for every byte, at least 258, got 257"):
        Tokenizer.train(CAPTIONS, vocab_size=257, kind="bpe")
    assert Tokenizer.train(CAPTIONS, vocab_size=258, kind="bpe").vocab_size == 258


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match='must be "word" or "bpe", got \'unigram\''):
        Tokenizer.train(CAPTIONS, vocab_size=300, kind="unigram")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_processes_that_train_and_encode_can_be_forked(kind):
    program = (
        "import os\nfrom vatt.preprocess.tokenizer import Tokenizer\n"
        "threads = lambda: len(os.listdir('/proc/self/task')) if os.path.isdir('/proc') else 1\n"
        "before = threads()\n"
        f"tokenizer = Tokenizer.train(['a red square'] * 1000, 300, {kind!r})\n"
        "tokenizer.encode(['a red square'] * 1000, 16)\n"
        "assert threads() == before, threads()\n"
        "assert 'TOKENIZERS_PARALLELISM' not in os.environ\n"
        "child = os.fork()\n"
        "tokenizer.encode(['a red square'] * 10, 16)\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_training_leaves_the_setting_of_the_librarys_threads_as_it_was(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    Tokenizer.train(CAPTIONS, vocab_size=300, kind="bpe")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


@pytest.fixture
def bpe() -> Tokenizer:
    return Tokenizer.train([*CAPTIONS, "a lower, slower, lowest square"] * 3, 400, kind="bpe")


def test_frequent_words_are_one_piece_and_words_never_seen_are_several(bpe):
    ids = bpe.encode(["square", "lowering"], max_words=8)
    assert ids.ne(0).sum(dim=1)[0] == 1
    assert 1 < ids.ne(0).sum(dim=1)[1] < len("lowering")
    assert 258 < bpe.vocab_size <= 400


def test_pieces_join_into_the_words_that_they_came_from(bpe):
    captions = ["A lowered square?", "two  words", "no[PAD] [UNK]"]
    decoded = bpe.decode(bpe.encode(captions, max_words=32))
    assert decoded == ["a lowered square", "two words", "nopad unk"]


def test_no_text_is_unknown_to_byte_pairs():
    bpe = Tokenizer.train(["a red square"], 258, kind="bpe")
    draw = random.Random(0)
    texts = [
        "夏 🎈 don’t",
        "<pad> [PAD] <unk> [UNK]",
        "\ud83d",
        "?!",
        "İ ß ﬁ Å n\u0303 ु \x1c \x00a",
    ]
    for _ in range(300):
        most = draw.choice([0x7F, 0x2FF, 0x30FF, 0x10FFFF])
        texts.append("".join(chr(draw.randint(0, most)) for _ in range(20)))
    ids = bpe.encode(texts, max_words=200)
    assert not ids.eq(1).any()
    words = Tokenizer.train(texts, 10_000)
    assert bpe.decode(ids) == words.decode(words.encode(texts, max_words=200))


def test_a_character_that_is_cut_in_two_is_left_out(bpe):
    ids = bpe.encode(["été 夏"], max_words=64)
    length = int(ids.ne(0).sum())
    assert bpe.decode(ids) == ["été 夏"]
    assert bpe.decode(bpe.encode(["été 夏"], max_words=length - 1)) == ["été"]


@pytest.mark.slow
def test_byte_pairs_do_not_depend_on_order_threads_or_process(tmp_path):
    captions = [*CAPTIONS, "a lower, slower, lowest square", "ÉTÉ ёлка 夏"] * 3
    Tokenizer.train(captions[::-1], 330, kind="bpe").save(tmp_path / "here")
    program = (
        "import sys\nfrom vatt.preprocess.tokenizer import Tokenizer\n"
        f"Tokenizer.train({captions!r}, 330, kind='bpe').save(sys.argv[1])\n"
    )
    for seed in ("1", "2"):
        threads = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / seed)],
            check=True,
            env=os.environ | threads | {"TOKENIZERS_PARALLELISM": "true"},
        )
        assert (tmp_path / seed).read_bytes() == (tmp_path / "here").read_bytes()


def test_byte_pairs_are_saved_loaded_and_pickled(bpe, tmp_path):
    captions = [*CAPTIONS, "words never seen"]
    expected = bpe.encode(captions, 32)
    bpe.save(tmp_path / "tokenizer.json")
    for copy in (Tokenizer.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(bpe))):
        assert copy.encode(captions, 32).equal(expected)
        assert copy.decode(expected) == bpe.decode(expected)
        assert copy.tokens == bpe.tokens


def test_tokens_are_listed_by_id(tokenizer, bpe):
    assert tokenizer.tokens[:4] == ["[PAD]", "[UNK]", "a", "red"]
    alone = torch.arange(tokenizer.vocab_size)[:, None]
    assert tokenizer.decode(alone) == ["", *tokenizer.tokens[1:]]
    assert bpe.tokens[:2] == ["[PAD]", "[UNK]"]
    assert len(set(bpe.tokens)) == bpe.vocab_size
