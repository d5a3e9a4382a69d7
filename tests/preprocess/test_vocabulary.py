"""The official vocabulary: its ids, its clean-up, and files that are none."""

import json
from pathlib import Path

import pytest

from vatt.cli import main
from vatt.errors import UserError
from vatt.preprocess.tokenizer import Tokenizer

SIGNS = ["<pad>", "<bos>", "<eos>", "<unk>"]
WORDS = [
    *("a", "at", "red", "blue", "dont", "stop", "now", "motherinlaw", "12", "cup", "35", "5", "50"),
    *("snakecase", "école", "été", "café", "ёлка", "夏", "pad", "unk", "abcde", "zerowidth"),
]

# Captions beside what the official code and ours make of them. Where they differ, the official code
# keeps a sign outside ASCII in the word, or does not know its lower case.
BOTH = [
    ("Don't STOP, now!", "dont stop now"),
    ("mother-in-law", "motherinlaw"),
    ("red - blue", "red blue"),
    ("1/2 cup at 3.5", "12 cup at 35"),
    ("$5 & 50%", "5 50"),
    ("snake_case", "snakecase"),
    ("a`b~c^d|{e}", "abcde"),
    ("été ёлка 夏", "été ёлка 夏"),
    ("red\u00a0blue\u3000stop\tnow\r\n", "red blue stop now"),
    ("<pad> [PAD] <unk>", "pad pad unk"),
    ("?! ...", ""),
    ("", ""),
]
DIFFERENT = [
    ("don’t", "<unk>", "dont"),
    ("red — blue", "red <unk> blue", "red blue"),
    ("red… “blue”", "<unk> <unk>", "red blue"),
    ("ÉCOLE École", "<unk> <unk>", "école école"),
    ("Ёлка", "<unk>", "ёлка"),
    ("cafe\u0301", "<unk>", "café"),
    ("ｒｅｄ １２", "<unk> <unk>", "red 12"),
    ("夏。", "<unk>", "夏"),
    ("red 🎈 blue🎈", "red <unk> <unk>", "red blue"),
    ("zero\u200bwidth", "<unk>", "zerowidth"),
]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "howto100m_en.txt"
    path.write_text("\n".join([*SIGNS, *WORDS]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("caption", "official", "ours"), [(text, words, words) for text, words in BOTH] + DIFFERENT
)
def test_captions_are_cleaned_as_the_table_says(vocabulary, caption, official, ours):
    taken = Tokenizer.from_vocabulary(vocabulary)
    assert taken.decode(taken.encode([caption], max_words=16)) == [official]
    trained = Tokenizer.train([" ".join(WORDS)], vocab_size=100)
    assert trained.decode(trained.encode([caption], max_words=16)) == [ours]
    pieces = Tokenizer.train([" ".join(WORDS)], vocab_size=300, kind="bpe")
    assert pieces.decode(pieces.encode([caption], max_words=64)) == [ours]


def test_a_word_has_the_number_of_its_line(vocabulary):
    tokenizer = Tokenizer.from_vocabulary(vocabulary)
    assert tokenizer.vocab_size == len(SIGNS) + len(WORDS)
    assert tokenizer.encode(WORDS, max_words=1)[:, 0].tolist() == list(
        range(4, 4 + len(WORDS)),
    )
    assert tokenizer.tokens == [*SIGNS, *WORDS]


def test_unknown_words_get_the_files_own_id_and_keep_their_place(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("<pad>\nred\n<unk>\n<bos>\nblue\n<eos>\n")
    tokenizer = Tokenizer.from_vocabulary(path)
    assert tokenizer.unknown_id == 2
    assert tokenizer.encode(["Red GREEN blue", "bos"], max_words=4).tolist() == [
        [1, 2, 4, 0],
        [2, 0, 0, 0],
    ]


def test_captions_are_cut_after_sixteen_words(vocabulary):
    ids = Tokenizer.from_vocabulary(vocabulary).encode(["red " * 20], max_words=16)
    assert ids.tolist() == [[6] * 16]


def test_ids_may_stand_before_the_words_in_any_order(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff5 red\r\n3 <unk>\r\n0 <pad>\r\n1 <bos>\r\n2 <eos>\r\n4 7".encode())
    tokenizer = Tokenizer.from_vocabulary(path)
    assert tokenizer.encode(["red 7 up"], max_words=4).tolist() == [[5, 4, 3, 0]]


def test_words_that_no_caption_reaches_keep_their_ids(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join([*SIGNS, "", "it's", "line\u2028separated", "red"]) + "\n")
    tokenizer = Tokenizer.from_vocabulary(path)
    assert tokenizer.encode(["it's red"], max_words=2).tolist() == [[3, 7]]
    assert tokenizer.vocab_size == 8


def test_taken_vocabulary_is_saved_with_its_clean_up(vocabulary, tmp_path):
    import tokenizers

    taken = Tokenizer.from_vocabulary(vocabulary)
    taken.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    captions = [row[0] for row in [*BOTH, *DIFFERENT]]
    assert loaded.unknown_id == taken.unknown_id == 3
    assert loaded.encode(captions, 16).equal(taken.encode(captions, 16))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("Red GREEN").ids == [6, 3]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"words.txt is empty: give"),
        (b" \n\n", r"words.txt is empty: give"),
        (b"<pad>\nr\xe9d\n", r"is not UTF-8 \(byte 7\)"),
        (b"<pad>\nice cream\n", r"line 2: 'ice cream' is neither a word nor an id.*no spaces"),
        (b"<pad>\n3 ice cream\n", r"line 2: '3 ice cream' is neither"),
        (b"<pad>\nred\nblue\nred\n", r"line 4: 'red' is on line 2 already"),
        (b"0 <pad>\n0 red\n", r"line 2: id 0 is that of line 1 already"),
        (b"<pad>\nRed\n", r"line 2: 'Red' is not in lower case"),
        (b"<pad>\nred\n<unk>\n", r"lacks <bos>, <eos>: an official vocabulary has"),
        (b"red\n<pad>\n<bos>\n<eos>\n<unk>\n", r"<pad> has id 1, but .* it must come first"),
        (b"<pad>\n<bos>\n<eos>\n<unk>\n5 red\n", r"5 words but none with id 4: .* 0 to 4"),
        (b"<pad>\n<bos>\n<eos>\n<unk>\n-1 red\n", r"5 words but none with id 4"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused_in_a_sentence(tmp_path, content, reason):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        Tokenizer.from_vocabulary(tmp_path / "words.txt")


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no vocabulary .*gone.txt: correct the path"):
        Tokenizer.from_vocabulary(tmp_path / "gone.txt")


def test_an_unknown_sign_must_be_there(tmp_path, vocabulary):
    Tokenizer.from_vocabulary(vocabulary).save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    del content["model"]["vocab"]["<unk>"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"t.json is not a tokenizer that vatt saved"):
        Tokenizer.load(tmp_path / "t.json")


def test_the_command_takes_a_vocabulary_over(vocabulary, tmp_path, capsys):
    out = tmp_path / "new" / "tokenizer.json"
    assert main(["tokenizer", "--vocabulary", str(vocabulary), str(out)]) == 0
    assert "27 ids, padding (0) and unknown (3) included" in capsys.readouterr().out
    assert Tokenizer.load(out).tokens == Tokenizer.from_vocabulary(vocabulary).tokens


def test_the_command_says_what_does_not_go_together(vocabulary, tmp_path, capsys):
    out = str(tmp_path / "tokenizer.json")
    assert main(["tokenizer", out]) == 2
    assert "give shard folders to train from, or --vocabulary" in capsys.readouterr().err
    for more in (["shards"], ["--kind", "bpe"], ["--vocab-size", "300"]):
        assert main(["tokenizer", *more, "--vocabulary", str(vocabulary), out]) == 2
        assert "--vocabulary takes no shards, no --kind" in capsys.readouterr().err
    assert main(["tokenizer", "--vocabulary", str(tmp_path / "gone"), out]) == 1
    assert "no vocabulary" in capsys.readouterr().err
    assert not Path(out).exists()
