"""Official checkpoints → model folders, as a user would convert them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from official_models import OFFICIAL_MODELS
from reference_packs import DATA, Pack, settings_of
from training_runs import fit_arguments, read_losses, read_rows

from vatt.cli import main
from vatt.config.geometry import VideoConfig
from vatt.config.model import VATTConfig
from vatt.config.presets import preset
from vatt.errors import CheckpointError, ConversionError
from vatt.models.checkpoint import load_model, save_model, save_optimizer_state
from vatt.models.start_weights import load_optimizer_state, load_weights
from vatt.network.model import VATT
from vatt.official.convert import compare, convert, read_optimizer_state
from vatt.official.names import parts_of
from vatt.official.settings import config_of_settings
from vatt.official.shapes import settings_of_variables
from vatt.official.tensor_bundle import TensorBundle
from vatt.preprocess.tokenizer import Tokenizer
from vatt.training.optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    learning_rate_factor,
)


def checkpoint_of(name: str) -> Path:
    return DATA / name / "ckpt"


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    variables = json.loads(path.read_text())["variables"]
    return {variable["key"]: tuple(variable["shape"]) for variable in variables}


@pytest.mark.parametrize(
    "path", sorted((DATA / "base_varlists").glob("*.json")), ids=lambda path: path.stem
)
def test_the_variables_of_a_full_size_model_say_which_model_it_is(path: Path) -> None:
    shapes = shapes_of(path)
    config = config_of_settings(settings_of_variables(shapes))
    with torch.device("meta"):
        model = VATT(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    report = compare(parts_of(config), shapes, wanted)
    report.check(path)
    assert set(report.used) == set(shapes)
    assert as_converted(config) == as_converted(OFFICIAL_MODELS[path.stem])


def as_converted(config: VATTConfig) -> dict[str, Any]:
    """What weights depend on and what is converted: frozen words, the release's positions."""
    values = config.to_dict()
    values["text"]["train_embedding"] = False
    if values["audio"]["spectrogram"]:
        values["audio"]["spectrogram"]["transposed_positions"] = True
    unused = {"text", "video", "audio"} - set(config.modalities)
    own = {name: config.tower(name) for name in config.modalities}
    drop = ("encoder", "video_encoder", "audio_encoder", "text_encoder", "audio_drop_token")
    kept = {name: value for name, value in values.items() if name not in {*unused, *drop}}
    return {**kept, **own, "d_post": config.d_post if config.arrangement == "agnostic" else None}


@pytest.mark.parametrize("name", ["ut_fac", "tx_fac_spt", "ft_wat"])
def test_a_converted_folder_is_the_model_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    pack, out = Pack(DATA / name), tmp_path / "out"
    (settings,) = (DATA / name).glob("*_config.json")
    prefix = next(checkpoint_of(name).glob("*.index")).with_suffix("")
    assert main(["convert", str(prefix), str(out), "--settings", str(settings)]) == 0
    model = load_model(out)
    assert model.config == pack.model.config
    for (key, ours), theirs in zip(
        model.state_dict().items(), pack.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key
    report = json.loads((out / "conversion.json").read_text())
    names = {n.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for n in pack.bundle.shapes}
    assert {*report["used"], *report["ignored"]} == {*names, *pack.bundle.unread}
    assert set(report["used"].values()) == set(model.state_dict())
    assert not (out / "optimizer.safetensors").exists()


def test_the_command_says_what_became_of_the_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DATA / "ft_wat" / "experiment_config.json"
    arguments = ["convert", str(checkpoint_of("ft_wat")), str(tmp_path / "out")]
    assert main([*arguments, f"--settings={settings}"]) == 0
    shown = capsys.readouterr().out
    assert "42 variables became 34 tensors, none is missing" in shown
    assert "42 optimiser state" in shown


def test_the_official_words_become_the_tokenizer(tmp_path: Path) -> None:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"word{number}" for number in range(93))]
    (tmp_path / "words.txt").write_text("\n".join(words))
    arguments = ["convert", str(checkpoint_of("ut_fac")), str(tmp_path / "out")]
    arguments += [f"--settings={DATA / 'ut_fac' / 'model_config.json'}"]
    assert main([*arguments, f"--vocabulary={tmp_path / 'words.txt'}"]) == 0
    ids = Tokenizer.load(tmp_path / "out" / "tokenizer.json").encode(["Word5, other!"], 4)
    assert ids.tolist() == [[9, 3, 0, 0]]


def test_a_list_of_other_words_than_the_model_has_vectors_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("<pad>\n<bos>\n<eos>\n<unk>\ndog")
    arguments = ["convert", str(checkpoint_of("ut_fac")), str(tmp_path / "out")]
    arguments += [f"--settings={DATA / 'ut_fac' / 'model_config.json'}"]
    assert main([*arguments, f"--vocabulary={tmp_path / 'words.txt'}"]) == 1
    assert "has 5 words, the model 97 word vectors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_words_that_the_release_keeps_frozen_stay_so(tmp_path: Path) -> None:
    model = Pack(DATA / "ut_fac").model
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen == ["text_tokens.embedding.weight"]


def test_only_converted_spectrogram_models_have_the_positions_of_the_release() -> None:
    converted = Pack(DATA / "tx_fac_spt").model.config.audio.spectrogram
    assert converted.transposed_positions
    assert not preset("bbs-spectrogram").audio.spectrogram.transposed_positions


def test_heads_that_are_not_64_wide_need_the_official_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(checkpoint_of("ut_fac")), str(tmp_path / "out")]) == 1
    assert "give the official configuration with --settings" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused_with_all_names(tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as refused:
        convert(
            checkpoint_of("ut_fac"), tmp_path / "out", settings=settings_of(DATA / "tx_fac_wat")
        )
    lines = str(refused.value).splitlines()
    assert "in 173 places" in lines[0]
    assert len(lines) == 174
    assert any("missing: " in line and "vid_backbone" in line for line in lines)
    assert any("without a place in the model: " in line and "unified" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_sizes_that_differ_are_named_with_both(tmp_path: Path) -> None:
    settings = settings_of(DATA / "ut_fac")
    settings["backbone_config"]["unified_model_kwargs"]["d_ff"] = 128
    with pytest.raises(ConversionError, match=r"mlp.inner.weight: expected \(128, 32\), .*\(64, 3"):
        convert(checkpoint_of("ut_fac"), tmp_path / "out", settings=settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet2d_50"}, "no VATT tower is called 'resnet2d_50'"),
        ({"pre_norm": False}, "pre_norm is False, this implementation has True only"),
        ({"use_masking": True}, "use_masking is True"),
        ({"temporal_patch_stride": 64}, "temporal_patch_stride is 64"),
        ({"pre_projection": True}, "come together or not at all"),
    ],
)
def test_settings_that_ours_cannot_follow_are_refused(change: dict[str, Any], message: str) -> None:
    settings = {**settings_of(DATA / "ft_wat")["model_config"], **change}
    with pytest.raises(ConversionError, match=message):
        config_of_settings(settings)


def test_a_truncated_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint_of("ft_wat"), tmp_path / "ckpt")
    (data,) = (tmp_path / "ckpt").glob("*.data-*")
    data.chmod(0o644)
    data.write_bytes(data.read_bytes()[:-100])
    assert main(["convert", str(tmp_path / "ckpt"), str(tmp_path / "out")]) == 1
    assert "copied whole?" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        convert(tmp_path / "ckpt", tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "3"])
def test_settings_that_are_no_object_are_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text(text)
    arguments = ["convert", str(checkpoint_of("ft_wat")), str(tmp_path / "out")]
    assert main([*arguments, "--settings", str(tmp_path / "settings.json")]) == 1
    shown = capsys.readouterr().err
    assert "must be a JSON object" in shown or "is not JSON" in shown


def test_the_optimisers_state_comes_along_and_goes_on(tmp_path: Path) -> None:
    folder, settings = DATA / "train3_ut_fac", settings_of(DATA / "train3_ut_fac")
    out = tmp_path / "out"
    convert(folder / "ckpt_after3", out, settings=settings, with_optimizer=True)
    model = load_model(out)
    optimizer = build_optimizer(model, OptimizerConfig())
    assert load_optimizer_state(optimizer, model, out) == 3
    state = optimizer.state[model.head.audio_va.linear.weight]
    bundle = TensorBundle.open(folder / "ckpt_after3")
    slot = next(n for n in bundle.shapes if "aud_to_va/kernel/.OPTIMIZER_SLOT/optimizer/m" in n)
    assert torch.equal(state["exp_avg"], torch.from_numpy(bundle.read(slot)).T)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    before = model.head.audio_va.linear.weight.detach().clone()
    optimizer.step()
    assert int(optimizer.param_groups[0]["num_steps"]) == 4
    assert not torch.equal(before, model.head.audio_va.linear.weight)  # by its momentum alone


def test_state_of_another_network_is_refused(tmp_path: Path) -> None:
    folder, settings = DATA / "train3_ut_fac", settings_of(DATA / "train3_ut_fac")
    convert(folder / "ckpt_after3", tmp_path, settings=settings, with_optimizer=True)
    model = VATT(preset("tiny"))
    with pytest.raises(ValueError, match=r"optimiser state .* is for"):
        load_optimizer_state(build_optimizer(model, OptimizerConfig()), model, tmp_path)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("OPTIMIZER_SLOT", "has no optimiser state: convert it without"),
        ("layers/0/mha/q/kernel/.OPTIMIZER_SLOT", "has no optimiser state of .*layers/0/mha/q"),
    ],
)
def test_a_checkpoint_without_all_of_its_optimiser_has_none_to_take(
    lost: str, message: str
) -> None:
    pack = Pack(DATA / "ft_wat")
    pack.bundle.shapes = {name: s for name, s in pack.bundle.shapes.items() if lost not in name}
    with pytest.raises(ConversionError, match=message):
        read_optimizer_state(pack.bundle, pack.model.config)


def test_an_optimiser_of_other_weights_does_not_stay_in_the_folder(tmp_path: Path) -> None:
    folder, settings = DATA / "train3_ut_fac", settings_of(DATA / "train3_ut_fac")
    convert(folder / "ckpt_after3", tmp_path, settings=settings, with_optimizer=True)
    assert (tmp_path / "optimizer.safetensors").is_file()
    convert(folder / "ckpt_before", tmp_path, settings=settings)
    assert not (tmp_path / "optimizer.safetensors").exists()


def test_state_of_another_kind_of_optimiser_is_refused(tmp_path: Path) -> None:
    folder, settings = DATA / "train3_ut_fac", settings_of(DATA / "train3_ut_fac")
    convert(folder / "ckpt_after3", tmp_path, settings=settings, with_optimizer=True)
    model = load_model(tmp_path)
    with pytest.raises(ValueError, match=r"exp_avg, exp_avg_sq .* not of KerasSGD"):
        load_optimizer_state(build_optimizer(model, OptimizerConfig(name="sgd")), model, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone_config": "abc"},
        {"backbone_config": {"unified_backbone": "ut_base", "unified_model_kwargs": 5}},
        {"backbone_config": {"unified_backbone": "ut_base"}, "head_config": 5},
        {"backbone_config": {"unified_backbone": "ut_base"}, "head_config": {"bridge": [5]}},
        {"name": "vit_base", "d_model": "x"},
    ],
)
def test_settings_of_another_form_are_refused_in_a_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(ConversionError):
        config_of_settings(settings)


def test_fine_tuned_models_read_clips_at_the_rates_of_fine_tuning() -> None:
    assert Pack(DATA / "ft_vit").model.config.video.frame_rate == 12.5
    assert Pack(DATA / "ft_wat").model.config.audio.sample_rate == 24_000


def test_weights_for_another_grid_get_interpolated_positions(tmp_path: Path) -> None:
    model = VATT(preset("tiny"))
    save_model(model, tmp_path)
    larger = VideoConfig(num_frames=4, frame_rate=5.0, image_size=48, patch_size=(2, 8, 8))
    other = VATT(replace(preset("tiny"), video=larger))
    load_weights(other, tmp_path)
    rows = other.video_tokens.positions.tables[1]
    assert rows.shape == (6, 32)
    torch.testing.assert_close(rows[0], model.video_tokens.positions.tables[1][0])
    video = torch.rand(1, 4, 48, 48, 3) * 2 - 1
    torch.testing.assert_close(
        other.eval().encode_video(video), model.eval().encode_video(video), atol=1e-5, rtol=1e-4
    )


@pytest.mark.slow
def test_training_starts_from_given_weights_and_resumes_without_them(
    tiny_shards: Path, trained_run: Path, tmp_path: Path
) -> None:
    second, model = tmp_path / "second", tmp_path / "model"
    save_model(load_model(trained_run / "checkpoints" / "last.ckpt"), model)
    start = f"--model.init_args.init_from={model}"
    rate = "--model.init_args.optimizer.learning_rate=1e-30"  # what it learns does not show
    shutil.copy(trained_run / "tokenizer.json", model)
    arguments = fit_arguments(tiny_shards, second, start, rate, "--trainer.max_steps=4")
    assert main(arguments) == 0
    ours = load_model(second / "checkpoints" / "last.ckpt").state_dict()
    for name, value in load_model(model).state_dict().items():
        if "running" not in name:
            torch.testing.assert_close(ours[name], value, msg=name)
    shutil.rmtree(model)
    config = str(second / "config.yaml")
    more = ["fit", "--config", config, "--ckpt_path=last", "--trainer.max_steps=6"]
    assert main(more) == 0
    assert len(read_losses(second)) == 6


@pytest.mark.slow
def test_training_goes_on_with_the_optimiser_and_its_place_in_the_schedule(
    tiny_shards: Path, tmp_path: Path
) -> None:
    first, model = tmp_path / "first", tmp_path / "model"
    adam = "--model.init_args.optimizer.name=adam"
    assert main(fit_arguments(tiny_shards, first, adam, "--trainer.max_steps=3")) == 0
    checkpoint = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)
    network = load_model(first / "checkpoints" / "last.ckpt")
    save_model(network, model)
    shutil.copy(first / "tokenizer.json", model)
    parameters = [name for name, value in network.named_parameters() if value.requires_grad]
    names = [name for group in groups_of(network) for name in group]
    assert sorted(names) == sorted(parameters)
    state = checkpoint["optimizer_states"][0]["state"]
    moments = {
        f"{kind}.{name}": state[number][kind]
        for number, name in enumerate(names)
        for kind in ("exp_avg", "exp_avg_sq")
    }
    save_optimizer_state({**moments, "steps": torch.tensor(100)}, model)
    arguments = fit_arguments(
        *(tiny_shards, tmp_path / "second", adam, "--trainer.max_steps=4"),
        f"--model.init_args.init_from={model}",
        "--model.init_args.init_optimizer=true",
        "--model.init_args.schedule={kind: half_cosine, warmup_steps: 2, start_step: 4}",
    )
    assert main(arguments) == 0
    second = torch.load(tmp_path / "second/checkpoints/last.ckpt", weights_only=True)
    assert second["optimizer_states"][0]["param_groups"][0]["num_steps"] == 104
    rates = [float(row["train/learning_rate"]) for row in read_rows(tmp_path / "second")]
    whole = ScheduleConfig(max_steps=8, warmup_steps=2, final_factor=0.0)
    expected = [1e-3 * learning_rate_factor(whole, step / 8) for step in (4, 5, 6, 7)]
    assert rates == pytest.approx(expected)


def groups_of(network: VATT) -> list[list[str]]:
    """Names of the parameters in the order of the optimiser's groups."""
    names = {id(value): name for name, value in network.named_parameters()}
    groups = build_optimizer(network, OptimizerConfig()).param_groups
    return [[names[id(value)] for value in group["params"]] for group in groups]


def test_weights_of_another_model_are_refused_before_training(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(VATT(preset("tiny")), tmp_path / "model")
    start = f"--model.init_args.init_from={tmp_path / 'model'}"
    width = "--model.init_args.model.encoder.d_ff=48"
    arguments = fit_arguments(tiny_shards, tmp_path / "run", start, width)
    assert main(arguments) == 2
    assert "which says what its word ids stand for" in capsys.readouterr().err
    Tokenizer.train(["a dog barks"], 256).save(tmp_path / "model" / "tokenizer.json")
    assert main(arguments) == 1
    assert "init_from: " in (shown := capsys.readouterr().err)
    assert "holds another model: " in shown


def test_a_schedule_goes_on_where_the_weights_left_it() -> None:
    whole = ScheduleConfig(max_steps=100, warmup_steps=10)
    rest = ScheduleConfig(max_steps=60, start_step=40, warmup_steps=10)
    assert rest.total_steps == 100
    for progress in (0.0, 0.05, 0.4, 0.7, 1.0):
        assert learning_rate_factor(rest, progress) == learning_rate_factor(whole, progress)
    with pytest.raises(ValueError, match="start_step >= 0"):
        ScheduleConfig(start_step=-1)
