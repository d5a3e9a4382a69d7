"""Models load, save and publish themselves; the Hub is a local stand-in for its own library."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import READER_TOKEN, TOKEN, HubServer, hub_server
from huggingface_hub import ModelCard
from tiny_models import make_model

import vatt
from vatt import VATT, CheckpointError, FeatureExtractor, Tokenizer, UserError, preset
from vatt.cli import main
from vatt.models.checkpoint import load_model, save_model, weights_digest
from vatt.models.hub import publish_folder
from vatt.network import model as network

FILES = [
    "README.md",
    "config.json",
    "model.safetensors",
    "modules.json",
    "preprocess.json",
    "tokenizer.json",
]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a dog barks"], 20)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model(make_model(), tmp_path / "model", tokenizer)
    return tmp_path / "model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(monkeypatch, str(tmp_path / "cache")) as server:
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_loaded_model_is_a_vatt_model_that_knows_its_origin(folder: Path) -> None:
    for model in (load_model(folder), VATT.from_pretrained(folder)):
        assert type(model) is vatt.VATT
        assert isinstance(model, network.VATT)
        assert not model.training
        assert model.origin == folder
        assert weights_digest(model) == weights_digest(make_model())
    assert type(FeatureExtractor.from_pretrained(folder, device="cpu").model) is VATT
    assert VATT(preset("tiny")).origin is None

    class Own(VATT):
        pass

    assert type(Own.from_pretrained(folder)) is Own


def test_a_saved_folder_has_weights_tokenizer_and_card_and_loads_everywhere(
    folder: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    VATT.from_pretrained(folder).save_pretrained(saved, licence="apache-2.0")
    assert sorted(contents(saved)) == FILES
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (saved / name).read_bytes() == (folder / name).read_bytes()
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.text.strip().startswith("# saved")
    texts = ["a dog barks"]
    first, second = (FeatureExtractor.from_pretrained(one, device="cpu") for one in (folder, saved))
    assert torch.equal(first.encode_text(texts), second.encode_text(texts))


def test_facts_of_the_origin_are_repeated_for_its_own_weights_only(
    folder: Path, tmp_path: Path
) -> None:
    head = "---\nlicense: mit\nvatt:\n  steps: 7\n---\n\n# old\n"
    (folder / "README.md").write_text(head)
    model = VATT.from_pretrained(folder)
    model.save_pretrained(tmp_path / "same")
    same = ModelCard.load(tmp_path / "same" / "README.md").data
    assert (same.license, same["vatt"]) == ("mit", {"steps": 7})
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "changed")
    changed = ModelCard.load(tmp_path / "changed" / "README.md").data
    assert (changed.license, changed.get("vatt")) == (None, None)
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == head  # somebody may have written it by hand
    assert weights_digest(load_model(folder)) == weights_digest(model)


def test_a_run_gives_its_best_weights_its_tokenizer_and_its_facts(
    trained_run: Path, tmp_path: Path
) -> None:
    model = VATT.from_pretrained(trained_run)
    assert model.origin == trained_run
    model.save_pretrained(tmp_path / "published")
    assert sorted(contents(tmp_path / "published")) == FILES
    facts = ModelCard.load(tmp_path / "published" / "README.md").data["vatt"]
    assert facts["steps"] == 10
    tokens = (tmp_path / "published" / "tokenizer.json").read_bytes()
    assert tokens == (trained_run / "tokenizer.json").read_bytes()


def test_a_model_that_reads_text_is_not_saved_without_a_tokenizer_silently(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model()
    with pytest.warns(UserWarning, match=r"goes without a tokenizer.json: give the tokenizer="):
        model.save_pretrained(tmp_path / "mute")
    model.save_pretrained(tmp_path / "named", tokenizer=tokenizer)
    assert (tmp_path / "named" / "tokenizer.json").exists()
    make_model(dataclasses.replace(preset("tiny"), modalities=("video", "audio"))).save_pretrained(
        tmp_path / "without text"
    )


# huggingface_hub 2.4 uploads large files by an argument that its own HTTP library warns of
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")
@pytest.mark.parametrize("large", [(), (".safetensors",)], ids=["one commit", "Git LFS"])
def test_what_is_pushed_arrives_byte_for_byte_and_loads_from_there(
    folder: Path, tmp_path: Path, large: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VATT.from_pretrained(folder)
    with hub_server(monkeypatch, str(tmp_path / "cache"), large) as hub:
        address = model.push_to_hub(
            "org/model", licence="mit", private=True, commit_message="First model"
        )
        model.save_pretrained(tmp_path / "model-on-disk" / "model", licence="mit")
        assert hub.repositories["org/model"] == {
            "main": contents(tmp_path / "model-on-disk" / "model")
        }
        assert hub.private == {"org/model": True}
        assert hub.messages == ["First model"]
        assert bool(hub.objects) == bool(large)
        assert address.startswith(f"{hub.address}/org/model/commit/")
        loaded = VATT.from_pretrained("org/model")
        assert weights_digest(loaded) == weights_digest(model)
        assert loaded.origin is not None
        assert loaded.origin.is_relative_to(tmp_path / "cache")
        extractor = FeatureExtractor.from_pretrained("org/model", device="cpu")
        assert extractor.encode_text("a dog barks").shape == (1, 12)
    offline = VATT.from_pretrained("org/model", local_files_only=True)
    assert weights_digest(offline) == weights_digest(model)
    with pytest.raises(CheckpointError, match="org/model is neither .* no copy in the cache"):
        VATT.from_pretrained("org/model", cache_dir=tmp_path / "empty", local_files_only=True)


def test_a_short_name_is_of_your_own_account_and_a_branch_is_made(
    folder: Path, hub: HubServer
) -> None:
    model = VATT.from_pretrained(folder)
    model.push_to_hub("model")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.push_to_hub("me/model", branch="later")
    assert set(hub.repositories["me/model"]) == {"main", "later"}
    first, later = (VATT.from_pretrained("me/model", revision=one) for one in ("main", "later"))
    assert weights_digest(later) == weights_digest(model) != weights_digest(first)
    with pytest.raises(CheckpointError, match="me/model .* no such revision"):
        VATT.from_pretrained("me/model", revision="absent")


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("org/model", None, "publishing needs a token of the Hugging Face Hub: `hf auth login`"),
        ("org/model", "hf_wrong", "org/model is not published: the Hub does not know this token"),
        ("org/model", READER_TOKEN, "org/model is not published: this token may not write there"),
        ("a/b/c", TOKEN, "'a/b/c' is no name on the Hugging Face Hub: give org/name"),
        ("org/-model", TOKEN, "'org/-model' is no name on the Hugging Face Hub"),
    ],
)
def test_a_push_that_cannot_be_is_refused_in_a_sentence(
    folder: Path,
    hub: HubServer,
    name: str,
    token: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(UserError) as caught:
        VATT.from_pretrained(folder).push_to_hub(name, token=token)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not any(hub.repositories.values())


def test_without_a_connection_the_upload_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server(monkeypatch, str(tmp_path / "cache")):
        pass  # it has stopped
    with pytest.raises(UserError, match="org/model is not published: the Hub cannot be reached"):
        publish_folder(folder, "org/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="org/model is not published: HF_HUB_OFFLINE is set"):
        publish_folder(folder, "org/model")
    with pytest.raises(UserError, match="no folder .*absent to publish: write one"):
        publish_folder(tmp_path / "absent", "org/model")


def test_export_publishes_its_folder(
    folder: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    command = ["export", str(folder), str(out), "--format", "model", "--licence", "mit"]
    assert main([*command, "--push-to-hub", "a/b/c"]) == 1
    assert "'a/b/c' is no name on the Hugging Face Hub" in capsys.readouterr().err
    assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", READER_TOKEN)
        command[2] = str(tmp_path / "kept")
        assert main([*command, "--push-to-hub", "org/kept"]) == 1
        error = capsys.readouterr().err
        assert "org/kept is not published: this token may not write there" in error
        assert f"`hf upload org/kept {tmp_path / 'kept'}` publishes it later" in error
    command[2] = str(out)
    assert main([*command, "--push-to-hub", "org/exported"]) == 0
    assert hub.repositories["org/exported"]["main"] == contents(out)
    assert f"published: {hub.address}/org/exported/commit/" in capsys.readouterr().out
    assert json.loads(hub.repositories["org/exported"]["main"]["config.json"])["format_version"]
