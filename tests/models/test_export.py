"""Towers outside vatt: exported files give what the model gives, or are not written."""

import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_models import ONE_LAYER
from torch import Tensor

from vatt.cli import main
from vatt.config.geometry import AudioConfig, SpectrogramConfig
from vatt.config.model import ClassifierConfig, HeadConfig, VATTConfig
from vatt.config.presets import as_classifier, preset
from vatt.features.extractor import FeatureExtractor
from vatt.models.checkpoint import load_model, save_model
from vatt.models.export import TOLERANCE, Format, export_model
from vatt.models.export_towers import Tower, random_input
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer

TINY = ONE_LAYER  # an exporter counts operations
SPECIFIC = replace(TINY, arrangement="specific")
SOUND_OF_1_S = AudioConfig(  # 32 windows in 2 patches, 40 mel bins
    sample_rate=16_000,
    num_samples=16_384,
    spectrogram=SpectrogramConfig(window_samples=1024, hop_samples=512, num_mels=40),
)
CONFIGS: dict[str, VATTConfig] = {
    "agnostic": TINY,
    "specific, joint": replace(SPECIFIC, head=HeadConfig(kind="joint", d_joint=20)),
    "spectrogram, linear text": replace(
        SPECIFIC,
        audio=replace(SOUND_OF_1_S),
        text=replace(TINY.text, tower="linear", d_linear=24),
        head=HeadConfig(d_va=24, d_vt=12, batch_norm="all", audio_layers=2),
    ),
    "classifier of video": as_classifier(TINY, "video", 7),
    "classifier of standardised sound": as_classifier(
        TINY,
        "audio",
        5,
        classifier=ClassifierConfig(modality="audio", num_classes=5, standardize=True),
    ),
    "other grid of positions": as_classifier(
        TINY, "audio", 5, audio=replace(TINY.audio, position_grid=(30,))
    ),
}
WORDS = ["a red ring spins and a dog barks"]


def make_model(config: VATTConfig) -> VATT:
    """Random weights whose running statistics are not those of a fresh model."""
    torch.manual_seed(0)
    model = VATT(config)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def saved(config: VATTConfig, folder: Path) -> VATT:
    """A model in a folder, with a tokenizer if it reads."""
    model = make_model(config)
    save_model(model, folder, Tokenizer.train(WORDS, 20) if "text" in config.modalities else None)
    return model


@pytest.fixture(scope="module")
def source(exported_model: Path) -> Path:
    return exported_model / "model"


@pytest.fixture(scope="module")
def exported(exported_model: Path) -> Path:
    return exported_model / "tiny"


def run_onnx(path: Path, raw: Tensor) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (entry,) = session.get_inputs()
    return dict(zip(names, session.run(None, {entry.name: raw.numpy()}), strict=True))


def expected(model: VATT, modality: str, raw: Tensor) -> dict[str, Tensor]:
    """What the model gives, by its public methods; the bridge of sound to text by its head."""
    with torch.inference_mode():
        features = getattr(model, f"encode_{modality}")(raw)
        made = {"features": features}
        if model.head is not None:
            made |= getattr(model, f"embed_{modality}")(raw)
            if modality == "audio" and "va" in made:
                made["vt"] = model.head.va_to_vt(made["va"])
        if model.classifier is not None:
            made["logits"] = model.classifier(features)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_both_formats_give_what_the_model_gives(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model, out = saved(config, tmp_path / "model"), tmp_path / "out"
    report = export_model(tmp_path / "model", out)
    rules = json.loads((out / "preprocess.json").read_text())
    compared = set()
    for modality in config.modalities:
        raw = random_input(config, modality, 5)  # another batch than those that the export tries
        wanted = expected(model, modality, raw)
        onnx_outputs = run_onnx(out / f"{modality}.onnx", raw)
        torch_outputs = torch.export.load(out / f"{modality}.pt2").module()(raw)
        assert [*onnx_outputs] == [*torch_outputs] == [*wanted] == [*rules[modality]["outputs"]]
        for output, value in wanted.items():
            bound = TOLERANCE * float(value.abs().max())
            assert np.abs(onnx_outputs[output] - value.numpy()).max() <= bound
            assert float((torch_outputs[output] - value).abs().max()) <= bound
            assert [*value.shape[1:]] == rules[modality]["outputs"][output]["shape"][1:]
            compared |= {(modality, output, "onnx"), (modality, output, "torch")}
    assert {(one.modality, one.output, one.form) for one in report.parity} == compared


@pytest.mark.slow
def test_captions_with_padding_and_without_words_are_as_in_the_model(exported: Path) -> None:
    model = load_model(exported)
    text = random_input(TINY, "text", 4)
    for row, length in enumerate((16, 9, 1, 0)):
        text[row, length:] = 0
    outputs = run_onnx(exported / "text.onnx", text)
    for row in range(4):  # each alone: cut to its own length, without a mask where it is full
        wanted = expected(model, "text", text[row : row + 1])
        for output, value in wanted.items():
            np.testing.assert_allclose(outputs[output][row], value[0], atol=1e-5)


@pytest.mark.slow
def test_a_silent_clip_is_as_in_the_model(tmp_path: Path) -> None:
    config = CONFIGS["spectrogram, linear text"]
    model = saved(config, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", formats=["onnx"], modalities=["audio"])
    silence = torch.zeros(2, config.audio.num_samples)
    outputs = run_onnx(tmp_path / "out" / "audio.onnx", silence)
    for output, value in expected(model, "audio", silence).items():
        np.testing.assert_allclose(outputs[output], value, atol=1e-5)


@pytest.mark.slow
def test_files_hold_the_weights_of_their_tower_once(exported: Path) -> None:
    weights = {
        modality: sum(p.numel() for p in Tower(load_model(exported), modality).parameters()) * 4
        for modality in TINY.modalities
    }
    for modality, size in weights.items():
        loaded = onnx.load(exported / f"{modality}.onnx")
        held = sum(len(one.raw_data) for one in loaded.graph.initializer)
        assert size <= held + 4096 <= size + 16_384  # constants beside; small weights as attributes
        state = torch.export.load(exported / f"{modality}.pt2").state_dict
        assert sum(value.nbytes for value in state.values()) <= size + 4096


def test_input_is_what_the_file_says(exported: Path) -> None:
    rules = json.loads((exported / "preprocess.json").read_text())
    kinds = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}
    for modality in TINY.modalities:
        session = onnxruntime.InferenceSession(exported / rules[modality]["files"]["onnx"])
        (entry,) = session.get_inputs()
        said = rules[modality]["input"]
        assert (entry.name, entry.shape) == (said["name"], said["shape"])
        assert entry.type == kinds[said["dtype"]]
        outputs = {output.name: output.shape for output in session.get_outputs()}
        assert outputs == {k: v["shape"] for k, v in rules[modality]["outputs"].items()}
        assert all(output.type == "tensor(float)" for output in session.get_outputs())


def test_the_folder_loads_and_compares_text_with_video(exported: Path, source: Path) -> None:
    clip = random_input(TINY, "video", 1)[0]
    theirs, ours = (
        FeatureExtractor.from_pretrained(one, device="cpu") for one in (exported, source)
    )
    for space in ("va", "vt", None):
        ask = {"space": space, "frame_rate": TINY.video.frame_rate}
        assert theirs.encode_video(clip, **ask).equal(ours.encode_video(clip, **ask))
    text = "a dog barks"
    vector = ours.encode_text(text)[0]
    ids = ours.tokenizer.encode([text], TINY.text.max_words)
    from_onnx = torch.from_numpy(run_onnx(exported / "text.onnx", ids)["vt"][0])
    torch.testing.assert_close(torch.nn.functional.normalize(from_onnx, dim=0), vector)


def test_only_what_was_asked_for_is_written(source: Path, tmp_path: Path) -> None:
    report = export_model(source, tmp_path / "a", formats=["torch"], modalities=["text", "text"])
    assert {*report.num_bytes} == {"README.md", "preprocess.json", "text.pt2", "tokenizer.json"}
    assert json.loads((tmp_path / "a" / "preprocess.json").read_text())["text"]["files"] == {
        "torch": "text.pt2"
    }
    export_model(source, tmp_path / "b", formats=["model"])
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "modules.json"),
        *("preprocess.json", "tokenizer.json"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_newer_opsets_run_too(source: Path, tmp_path: Path, opset: int) -> None:
    export_model(source, tmp_path / "out", formats=["onnx"], modalities=["text"], opset=opset)
    loaded = onnx.load(tmp_path / "out" / "text.onnx")
    assert {one.domain: one.version for one in loaded.opset_import}[""] == opset


@pytest.mark.slow
def test_an_export_that_is_too_far_from_the_model_leaves_nothing(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        Exception, match=r"nothing is written: .*text features \(onnx\) \d\.\de-0\d"
    ):
        export_model(
            source, tmp_path / "out", formats=["onnx"], modalities=["text"], tolerance=1e-12
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_prints_differences_and_sizes_and_nothing_of_the_exporter(
    source: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(["export", str(source), str(tmp_path / "out"), "--modalities", "audio"]) == 0
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []
    shown = capfd.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[0].startswith("largest difference from the model")
    assert lines[1].split() == ["tower", "output", "onnx", "torch"]
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["audio", output] for output in ("features", "va", "vt")
    ]
    assert "names no licence" in lines[-1]
    assert "no tokenizer" not in shown.out
    assert any("audio.pt2" in line and "MB" in line for line in lines)
    assert len(lines) == 2 + 3 + 1 + len(list((tmp_path / "out").iterdir())) + 1


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["absent", "out"], "no model at absent: give a model folder", 1),
        (["MODEL", "taken"], "taken is there already: give another folder", 1),
        (["MODEL", "taken/file"], "file is there already", 1),
        (["MODEL", "out", "--formats", "tflite"], "invalid choice: 'tflite'", 2),
        (["VIDEO", "out", "--modalities", "text"], "this model has video, not text", 1),
        (["MODEL", "out", "--opset", "11"], "opset must be from 18 to", 1),
        (["VIDEO", "out", "--formats", "onnx", "--opset", "28"], "with opset 28, try 18", 1),
        (["taken/file", "out"], "not a checkpoint that can be read without running code", 1),
        (["MODEL", "out", "--run", "taken"], "taken is no run folder: config.yaml is missing", 1),
        (["MODEL", "out", "--results", "taken/file"], "is not the results.json of", 1),
        (["MODEL", "out", "--results", "absent"], "absent cannot be read (No such file", 1),
        (["RUN", "out"], "has no checkpoints/last.ckpt yet: nothing is trained", 1),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
    code: int,
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("{}")
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").write_text("seed_everything: 0\n")
    save_model(VATT(as_classifier(TINY, "video", 3)), tmp_path / "VIDEO")
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    arguments = [str(source) if argument == "MODEL" else argument for argument in arguments]
    assert main(["export", *arguments]) == code
    shown = capfd.readouterr().err
    assert sentence in " ".join(shown.split())
    assert code == 2 or shown.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(("form", "name"), [("torch", "text.pt2"), ("onnx", "text.onnx")])
def test_a_full_disk_is_named_and_leaves_nothing(
    source: Path, tmp_path: Path, form: Format, name: str
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))  # as if the disk were full
        with pytest.raises(OSError, match=f"{name}'$"):
            export_model(source, tmp_path / "out", formats=[form], modalities=["text"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_model(source, tmp_path / "out", formats=["model"])
    assert (tmp_path / "out" / "config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_package_is_named_with_its_extra(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnxscript'] = None\n"
        "from vatt.cli import main\n"
        f"sys.exit(main(['export', {str(source)!r}, {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'ONNX needs the package onnxscript: pip install "vatt[export]"' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_tokenizer_is_exported_and_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(VATT(TINY), tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--formats=model"]) == 0
    assert "came without one" in capsys.readouterr().out
    assert "came without a `tokenizer.json`" in (tmp_path / "out" / "README.md").read_text()
    assert (
        json.loads((tmp_path / "out" / "preprocess.json").read_text())["text"]["tokenizer"] is None
    )


def test_the_model_is_left_as_it_was(source: Path) -> None:
    model = load_model(source)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    for modality in TINY.modalities:
        Tower(model, modality)
    assert [name for name, _ in model.named_modules()] == names
    assert all(p.requires_grad for p in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="this model has video, not audio"):
        Tower(VATT(as_classifier(TINY, "video", 3)), "audio")


def test_training_and_extraction_go_on_after_an_export(tmp_path: Path) -> None:
    # positions of another grid and spectrograms are made from tables that are kept
    config = CONFIGS["other grid of positions"]
    saved(config, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", formats=["torch"])
    model = VATT(config)
    model.encode_audio(random_input(config, "audio", 2)).sum().backward()
    assert all(p.grad is not None for p in model.encoders.parameters())


def test_saved_models_say_what_comes_before_them(tmp_path: Path) -> None:
    saved(TINY, tmp_path)
    rules = json.loads((tmp_path / "preprocess.json").read_text())
    assert rules["format_version"] == 1
    assert rules["spaces"] == {"va": ["video", "audio"], "vt": ["video", "audio", "text"]}
    assert rules["outputs_normalized"] is False
    video, audio, text = (rules[name] for name in TINY.modalities)
    assert (video["num_frames"], video["frame_rate"], video["image_size"]) == (4, 5.0, 32)
    assert (audio["num_samples"], audio["sample_rate"]) == (6_400, 8_000)
    assert (text["max_words"], text["padding_id"], text["tokenizer"]) == (16, 0, "tokenizer.json")
    assert "files" not in video
    save_model(VATT(TINY), tmp_path / "without tokenizer")
    rules = json.loads((tmp_path / "without tokenizer" / "preprocess.json").read_text())
    assert rules["text"]["tokenizer"] is None
    for modality, function in (("video", "softmax"), ("audio", "sigmoid")):
        save_model(VATT(as_classifier(TINY, modality, 3)), tmp_path / modality)
        rules = json.loads((tmp_path / modality / "preprocess.json").read_text())
        assert [*rules[modality]["outputs"]] == ["features", "logits"]
        assert rules[modality]["outputs"]["logits"]["probabilities"] == function
        assert rules["spaces"] == {}
    (tmp_path / "preprocess.json").write_text("nothing reads this")
    assert load_model(tmp_path).config == TINY


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ma-base", "bbs-spectrogram"])
def test_models_of_published_size_are_exported(name: str, tmp_path: Path) -> None:
    save_model(VATT(preset(name)), tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "out")
    assert max(one.error for one in report.parity) <= TOLERANCE
    shutil.rmtree(tmp_path / "out")
