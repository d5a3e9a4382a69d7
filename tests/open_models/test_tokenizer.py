"""Tokenizers of open models behind the interface of our own."""

from pathlib import Path

import pytest
import torch
from foreign_models import make_tokenizer, save_clip, save_siglip, skip_without

from vatt.errors import UserError
from vatt.open_models.tokenizer import PretrainedTokenizer, TextPadding, names_open_model

skip_without("transformers")
TEXT = "a dog barks at the red ball"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


def test_ids_are_those_of_the_model_plus_one_with_padding_behind(clip: Path) -> None:
    ids = PretrainedTokenizer.from_source(clip).encode([TEXT, "a dog"], 24)
    theirs = make_tokenizer()([TEXT, "a dog"])["input_ids"]
    for row, of_row in zip(ids.tolist(), theirs, strict=True):
        assert row == [one + 1 for one in of_row] + [0] * (24 - len(of_row))


def test_longer_texts_end_as_those_of_the_model_do(clip: Path) -> None:
    ids = PretrainedTokenizer.from_source(clip).encode(TEXT, 5)
    theirs = make_tokenizer()(TEXT, truncation=True, max_length=5)["input_ids"]
    assert (ids[0] - 1).tolist() == theirs


def test_texts_without_a_word_have_no_ids(clip: Path) -> None:
    assert not PretrainedTokenizer.from_source(clip).encode(["", "  "], 8).any()


def test_ids_become_texts_again(clip: Path) -> None:
    tokenizer = PretrainedTokenizer.from_source(clip)
    assert tokenizer.decode(tokenizer.encode([TEXT])) == [TEXT]


def test_padding_is_what_the_model_expects(clip: Path, tmp_path: Path) -> None:
    assert PretrainedTokenizer.from_source(clip).padding == TextPadding(token_id=1)
    siglip = PretrainedTokenizer.from_source(save_siglip(tmp_path / "siglip"))
    assert siglip.padding.is_full


def test_a_saved_tokenizer_gives_the_same_ids(clip: Path, tmp_path: Path) -> None:
    tokenizer = PretrainedTokenizer.from_source(clip)
    tokenizer.save(tmp_path / "tokenizer.json")
    import tokenizers

    again = PretrainedTokenizer(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))
    assert torch.equal(again.encode([TEXT], 16), tokenizer.encode([TEXT], 16))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="no tokenizer of transformers in"):
        PretrainedTokenizer.from_source(tmp_path)


def test_folders_and_hub_ids_name_a_model_and_files_do_not(clip: Path) -> None:
    assert names_open_model(str(clip))
    assert names_open_model("openai/clip-vit-base-patch32")
    assert not names_open_model("runs/demo/tokenizer.json")
