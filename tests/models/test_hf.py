"""transformers loads and saves our model folders; its vectors are those of `FeatureExtractor`."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_models import skip_without
from hub_server import hub_server
from tiny_models import make_model

from vatt import (
    VATT,
    ClassifierConfig,
    FeatureExtractor,
    Tokenizer,
    UserError,
    load_model,
    preset,
    save_model,
)
from vatt.encoders.transformers_loading import load_transformers
from vatt.models.checkpoint import weights_digest

skip_without("transformers")
load_transformers()

import transformers  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoProcessor  # noqa: E402

import vatt.hf  # noqa: E402
from vatt.hf import VattConfig, VattModel, VattProcessor  # noqa: E402

TINY = preset("tiny")
TEXTS = ["a dog barks", "the red ring"]
WEIGHTS = ("config.json", "model.safetensors", "tokenizer.json")


def save_tiny(folder: Path, model: VATT | None = None) -> Path:
    tokenizer = Tokenizer.train(["a dog barks at the cat", "the red ring spins"], 20)
    save_model(model or make_model(), folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """Two videos and two sounds, of other sizes and rates than the model's."""
    draw = np.random.default_rng(0)
    return {
        "videos": [draw.integers(0, 256, (9, 40, 48, 3), dtype=np.uint8) for _ in range(2)],
        "audio": [draw.uniform(-1, 1, 20_000).astype(np.float32) for _ in range(2)],
    }


def test_vectors_are_those_of_our_own_extractor(folder: Path, arrays: dict[str, Any]) -> None:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert (type(model), type(processor)) == (VattModel, VattProcessor)
    assert not model.training
    inputs = processor(text=TEXTS, **arrays, frame_rate=10, sampling_rate=16_000)
    assert list(inputs) == ["pixel_values_videos", "input_values", "input_ids"]
    assert inputs["pixel_values_videos"].dtype == torch.uint8
    with torch.no_grad():
        output = model(**inputs)
    fx = FeatureExtractor.from_pretrained(folder, device="cpu")
    form = {"num_windows": 1, "normalize": False}
    expected = {
        f"{modality}_{space or 'features'}": vectors
        for space in ("va", "vt", None)
        for modality, vectors in {
            "video": fx.encode_video(arrays["videos"], frame_rate=10, space=space, **form),
            "audio": fx.encode_audio(arrays["audio"], sample_rate=16_000, space=space, **form),
            "text": None if space == "va" else fx.encode_text(TEXTS, space=space, normalize=False),
        }.items()
        if vectors is not None
    }
    assert set(output) == set(expected)
    for name, vectors in expected.items():
        assert torch.allclose(output[name], vectors, rtol=0, atol=1e-6), name
    ids = inputs["input_ids"]
    alone = model(input_ids=ids, return_dict=False)
    assert [tuple(one.shape) for one in alone] == [(2, 12), (2, 32)]
    assert torch.equal(alone[0], load_model(folder).embed_text(ids)["vt"])


def test_a_folder_that_transformers_saves_is_ours_byte_for_byte(
    folder: Path, tmp_path: Path
) -> None:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    for name in WEIGHTS[::2]:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert "model_type" not in json.loads((tmp_path / "config.json").read_text())
    assert weights_digest(load_model(tmp_path)) == weights_digest(load_model(folder))
    again = AutoModel.from_pretrained(tmp_path)
    assert weights_digest(again.vatt) == weights_digest(model.vatt)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.tokens == processor.tokenizer.tokens
    assert isinstance(again.config, VattConfig)
    assert again.config.settings == TINY


def test_a_processor_by_itself_is_loaded_and_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.settings == TINY
    assert torch.equal(again(text=TEXTS)["input_ids"], processor(text=TEXTS)["input_ids"])
    assert again.model_input_names == ["pixel_values_videos", "input_values", "input_ids"]
    assert '"processor_class": "VattProcessor"' in repr(again)


def test_the_configuration_has_our_settings_and_those_of_transformers(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert config.settings == TINY
    values = config.to_dict()
    assert values["model_type"] == "vatt"
    assert values["d_post"] == 32
    assert VattConfig(**values).settings == TINY
    assert '"d_post": 32' in repr(config)
    with pytest.raises(UserError, match=r"d_post must be positive"):
        VattConfig(d_post=0)


def test_new_models_have_weights_as_ours_and_every_kind_of_output(tmp_path: Path) -> None:
    joint = dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, kind="joint"))
    classifier = dataclasses.replace(
        TINY,
        modalities=("video",),
        head=None,
        classifier=ClassifierConfig(num_classes=3, dropout=0.0),
    )
    clip = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    for settings, names in (
        (joint, ["video_joint", "video_features"]),
        (classifier, ["logits", "video_features"]),
    ):
        model = AutoModel.from_config(VattConfig(**settings.to_dict())).eval()
        output = model(pixel_values_videos=clip)
        assert list(output) == names
        assert not torch.equal(output[names[0]], torch.zeros_like(output[names[0]]))
        model.save_pretrained(tmp_path / settings.modalities[-1])
        again = AutoModel.from_pretrained(tmp_path / settings.modalities[-1])
        assert torch.equal(again(pixel_values_videos=clip)[names[0]], output[names[0]])
    torch.manual_seed(1)
    weights = AutoModel.from_config(VattConfig(**TINY.to_dict())).vatt.state_dict()
    torch.manual_seed(1)
    for name, value in VATT(TINY).state_dict().items():
        assert torch.equal(weights[name], value), name


def test_word_vectors_that_training_keeps_stay_fixed(tmp_path: Path) -> None:
    fixed = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, train_embedding=False))
    save_tiny(tmp_path, make_model(fixed))
    model, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    names = [name for name, one in model.named_parameters() if not one.requires_grad]
    assert names == ["vatt.text_tokens.embedding.weight"]


def test_a_model_in_half_precision_is_saved_so_and_read_by_both(
    folder: Path, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    ours = load_model(tmp_path)
    assert next(ours.parameters()).dtype == torch.float32


def test_a_model_of_the_hub_is_loaded_from_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server(monkeypatch, str(tmp_path / "cache")) as hub:
        load_model(folder).push_to_hub("org/tiny")
        model = AutoModel.from_pretrained("org/tiny")
        processor = AutoProcessor.from_pretrained("org/tiny")
        assert weights_digest(model.vatt) == weights_digest(load_model(folder))
        model.push_to_hub("org/again")
        processor.push_to_hub("org/again")
        files = hub.repositories["org/again"]["main"]
        assert {name: files[name] for name in WEIGHTS[::2]} == {
            name: (folder / name).read_bytes() for name in WEIGHTS[::2]
        }
        assert weights_digest(VATT.from_pretrained("org/again")) == weights_digest(model.vatt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to read: give text=, videos= or audio="),
        ({"text": []}, "nothing to read: no text was given"),
        ({"videos": []}, "nothing to read: no video was given"),
        ({"text": ["?!"]}, "text '\\?!' holds no word: leave it out"),
        ({"images": np.zeros((8, 8, 3))}, "give still images as videos="),
        ({"audio": np.zeros(99, np.float32)}, "needs sampling_rate="),
        ({"videos": np.zeros((2, 8, 8, 3), np.uint8)}, "needs frame_rate="),
        ({"videos": np.zeros((2, 8, 8, 3)), "frame_rate": 1}, "is uint8"),
        ({"text": "a dog", "return_tensors": "tf"}, 'must be "pt" or "np", got \'tf\''),
    ],
)
def test_inputs_that_cannot_be_read_are_refused_in_a_sentence(
    folder: Path, arguments: dict[str, Any], message: str
) -> None:
    processor = VattProcessor.from_pretrained(folder)
    with pytest.raises(UserError, match=message):
        processor(**arguments)


def test_files_still_images_and_numpy_are_read(folder: Path, arrays: dict[str, Any]) -> None:
    processor = VattProcessor.from_pretrained(folder)
    still = processor(videos=arrays["videos"][0][0], return_tensors="np")["pixel_values_videos"]
    assert isinstance(still, np.ndarray)
    assert still.shape == (1, 4, 32, 32, 3)
    assert (still == still[:, :1]).all()
    pair = processor(audio=(arrays["audio"][0], 16_000))["input_values"]
    named = processor(audio=arrays["audio"][0], sampling_rate=16_000)["input_values"]
    assert torch.equal(pair, named)
    with pytest.raises(vatt.MediaError, match="absent.mp4"):
        processor(videos="absent.mp4")


def test_models_without_a_modality_or_a_tokenizer_say_so(tmp_path: Path) -> None:
    silent = dataclasses.replace(TINY, modalities=("video", "text"))
    save_model(make_model(silent), tmp_path)
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="this model has video and text, not audio"):
        model(input_values=torch.zeros(1, 6400))
    with pytest.raises(UserError, match="windows are of video in this model, got 'audio'"):
        processor(audio=np.zeros(99, np.float32), sampling_rate=8000)
    with pytest.raises(UserError, match="came without a tokenizer.json"):
        processor(text="a dog")
    with pytest.raises(ValueError, match="give at least one of pixel_values_videos"):
        model()


def test_other_models_of_transformers_load_as_before(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ValueError, match="Should have a `model_type` key"):
        AutoConfig.from_pretrained(tmp_path)
    transformers.BertConfig(hidden_size=24).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 24


@pytest.mark.slow
def test_a_program_needs_no_more_than_the_import(folder: Path) -> None:
    """In a process of its own; `import vatt` loads no transformers."""
    code = (
        "import sys, vatt\n"
        "vatt.VATT\n"
        "assert 'transformers' not in sys.modules\n"
        "import vatt.hf\n"
        "from transformers import AutoModel\n"
        f"print(type(AutoModel.from_pretrained({str(folder)!r})).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "VattModel"), done.stderr
