"""The official models: every size, every default and every initial weight."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from official_models import OFFICIAL_MODELS
from torch import Tensor, nn

from vatt.config.geometry import AudioConfig, SpectrogramConfig, TextConfig
from vatt.config.model import ClassifierConfig, EncoderConfig, VATTConfig
from vatt.config.presets import BASE, LARGE, MEDIUM, SMALL, TINY, as_classifier, preset
from vatt.network.contrastive_loss import LossConfig
from vatt.network.heads import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, Classifier
from vatt.network.layers import NORM_EPS, Attention
from vatt.network.model import VATT
from vatt.network.tokens import Positions, init_agg

DATA = Path(__file__).parents[1] / "packs"
CLASSES = 5


def official(name: str) -> Any:
    return json.loads((DATA / "configs" / f"{name}.json").read_text())


def sizes(model: VATT) -> Iterator[int]:
    """Numbers in each variable, with one for each of the three that a fused projection holds."""
    for name, value in model.state_dict().items():
        parts = 3 if "query_key_value" in name else 1
        yield from [value.numel() // parts] * parts


@pytest.mark.parametrize(
    "path", sorted((DATA / "base_varlists").glob("*.json")), ids=lambda path: path.stem
)
def test_a_full_size_model_has_the_variables_of_the_official_one(path: Path) -> None:
    expected = json.loads(path.read_text())
    config = OFFICIAL_MODELS[path.stem]
    with torch.device("meta"):
        model = VATT(replace(config, text=replace(config.text, train_embedding=False)))
    trainable = [p.numel() for p in model.parameters() if p.requires_grad]
    assert sum(trainable) == expected["trainable_params"]
    assert sum(sizes(model)) == expected["total_params"]
    theirs = Counter(torch.Size(v["shape"]).numel() for v in expected["variables"])
    assert Counter(sizes(model)) == theirs


def encoder_of(values: dict[str, Any], *, bias: bool) -> EncoderConfig:
    names = ("num_layers", "d_model", "d_ff", "num_heads", "d_kv")
    sizes = {name: values[name] for name in names}
    return EncoderConfig(**sizes, bias=bias, dropout=values["dropout_rate"])


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("model_vit_base", preset("bbs").tower("video")),
        ("model_vit_medium", preset("mbs").tower("video")),
        ("model_vit_large", preset("lbs").tower("video")),
        ("model_wat_base", preset("bbs").tower("audio")),
        ("model_wat_medium", MEDIUM),
        ("model_wat_large", LARGE),
        ("model_spt_base", preset("bbs-spectrogram").tower("audio")),
        ("model_spt_medium", replace(MEDIUM, bias=False)),
        ("model_t5_small", replace(preset("bbs").tower("text"), bias=False)),  # T5 has no biases
        ("model_t5_base", replace(BASE, bias=False)),
        ("model_ut_base", preset("ma-base").encoder),
        ("model_ut_medium", preset("ma-medium").encoder),
        ("model_ut_large", preset("ma-large").encoder),
    ],
)
def test_an_encoder_has_the_official_default_sizes(name: str, encoder: EncoderConfig) -> None:
    values = official(name)
    assert encoder_of(values, bias=values.get("use_bias", False)) == encoder
    assert values["layer_norm_epsilon"] == NORM_EPS


def test_the_video_geometry_is_the_official_default() -> None:
    for name in ("bbs", "mbs", "lbs"):
        size = {"b": "base", "m": "medium", "l": "large"}[name[0]]
        values, config = official(f"model_vit_{size}"), preset(name)
        axes = ("temporal", "vertical", "horizontal")
        assert config.video.grid == tuple(values[f"max_{axis}_buckets"] for axis in axes)
        spatial = values["spatial_patch_size"]
        assert config.video.patch_size == (values["temporal_patch_size"], spatial, spatial)
        assert 1 - config.drop_token == values["patch_sampling_rate"]


def test_the_audio_geometry_is_the_official_default() -> None:
    waveform, values = preset("bbs").audio, official("model_wat_base")
    assert waveform.grid == (values["max_temporal_buckets"],)
    assert waveform.patch_size == values["temporal_patch_size"] == values["temporal_patch_stride"]
    audio, values = preset("bbs-spectrogram").audio, official("model_spt_base")
    assert audio.grid == (values["max_temporal_buckets"], values["max_spectoral_buckets"])
    mel = audio.spectrogram
    assert mel is not None
    assert mel.patch_size == (values["temporal_patch_size"], values["spectoral_patch_size"])


@pytest.mark.parametrize("size", ["base", "medium", "large"])
def test_the_agnostic_model_is_the_official_default(size: str) -> None:
    values, config = official(f"model_ut_{size}"), preset(f"ma-{size}")
    square = values["max_vid_spatial_buckets"]
    assert config.video.grid == (values["max_vid_temporal_buckets"], square, square)
    spatial = values["vid_spatial_patch_size"]
    assert config.video.patch_size == (values["vid_temporal_patch_size"], spatial, spatial)
    assert config.audio.grid == (values["max_aud_temporal_buckets"],)
    assert config.audio.patch_size == values["aud_temporal_patch_size"]
    assert config.text.max_words == values["max_txt_temporal_buckets"]
    assert config.text.vocab_size == values["txt_vocab_size"]
    assert config.text.d_embedding == values["txt_embedding_dim"]
    assert config.d_post == values["d_post_proj"]
    assert 1 - config.drop_token == values["patch_sampling_rate"]


def test_text_is_the_official_default() -> None:
    t5, linear, text = official("model_t5_small"), official("model_linear"), TextConfig()
    assert text.vocab_size == t5["vocab_size"] == linear["vocab_size"]
    assert text.d_embedding == t5["d_embedding"] == linear["d_embedding"]
    assert text.relative_buckets == t5["num_relative_buckets"]
    assert text.relative_max_distance == t5["max_relative_distance"]
    assert t5["d_pre_proj"] == SMALL.d_model
    assert text.d_linear == linear["d_model"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vit_base", as_classifier(preset("bbs"), "video", CLASSES)),
        ("vit_medium", as_classifier(preset("mbs"), "video", CLASSES)),
        ("vit_large", as_classifier(preset("lbs"), "video", CLASSES)),
        ("wat_base", as_classifier(preset("bbs"), "audio", CLASSES)),
        ("spt_base", as_classifier(preset("bbs-spectrogram"), "audio", CLASSES)),
    ],
)
def test_a_classifier_drops_the_official_share_of_features(name: str, config: VATTConfig) -> None:
    values = official(f"finetune_{name}")
    assert config.classifier is not None
    assert config.classifier.dropout == values["model_config"]["cls_dropout_rate"]
    assert config.video.num_frames == values["train"]["input"]["num_frames"]


@pytest.mark.parametrize(("name", "ours"), [("tx_fac", "mbs"), ("ut_fac", "ma-medium")])
def test_pretraining_has_the_official_inputs_spaces_and_losses(name: str, ours: str) -> None:
    values, config = official(f"pretrain_{name}"), preset(ours)
    inputs = values["train"]["input"]
    assert config.video.num_frames == inputs["num_frames"]
    assert config.video.image_size == inputs["frame_size"]
    assert config.text.max_words == inputs["max_num_words"]
    mel, rate = SpectrogramConfig(), config.audio.sample_rate
    assert mel.num_mels == inputs["mel_bins"]
    assert mel.window_samples == int(inputs["stft_length"] * rate)
    assert mel.hop_samples == int(inputs["stft_step"] * rate)
    (bridge,) = values["model_config"]["head_config"]["bridge"]
    assert config.head is not None
    assert config.head.kind == bridge["name"].removeprefix("mlp_")
    assert config.head.d_va == bridge["vid_to_aud_txt_kwargs"]["d_model"]
    assert config.head.d_va == bridge["aud_to_vid_txt_kwargs"]["d_model"]
    assert config.head.d_vt == bridge["txt_to_vid_aud_kwargs"]["d_model"]
    norm = bridge["bn_config"]
    assert (norm["epsilon"], norm["momentum"]) == (BATCH_NORM_EPS, 1 - BATCH_NORM_MOMENTUM)
    (loss,) = values["model_config"]["loss_config"]["bridge"]
    defaults = LossConfig()
    assert defaults.form == loss["name"].removesuffix("_nce")
    assert defaults.start_temperature == loss["temperature"]
    assert not defaults.learns_temperature
    assert defaults.video_audio_weight == loss["vid_aud_weight"]
    assert defaults.video_text_weight == loss["vid_txt_weight"]
    assert defaults.audio_text_weight == loss["aud_txt_weight"]


# d_kv is not d_model / num_heads, so that q, k and v have other fans than a square kernel.
WIDE = replace(TINY, d_model=48, d_ff=112, num_heads=4, d_kv=16)


def drawn(**changes: Any) -> VATT:
    torch.manual_seed(0)
    config = replace(
        preset("tiny"), arrangement="specific", encoder=WIDE, text=TextConfig(vocab_size=50)
    )
    return VATT(replace(config, **changes))


def assert_uniform(values: Tensor, bound: float) -> None:
    """Hundreds of values fill their range to a few per cent, and no further."""
    assert values.abs().max().item() <= bound * (1 + 1e-6)
    assert values.abs().max().item() > 0.98 * bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def assert_cut_normal(values: Tensor, std: float) -> None:
    """Normal of that deviation before what lies beyond two of it was drawn again."""
    assert 1.9 * std < values.abs().max().item() <= 2 * std * (1 + 1e-6)
    assert values.std().item() == pytest.approx(0.8796 * std, rel=0.05)


@pytest.mark.parametrize("modality", ["video", "audio"])
@pytest.mark.parametrize("spectrogram", [None, SpectrogramConfig(patch_size=(16, 5))])
def test_patch_projections_start_as_the_convolution_they_stand_for(
    modality: str, spectrogram: SpectrogramConfig | None
) -> None:
    audio = AudioConfig(num_samples=25_600, spectrogram=spectrogram)
    model = drawn(audio=audio, modalities=("video", "audio"))
    projection = model.tokens_of(modality).patch_projection
    positions, channels = (2 * 8 * 8, 3) if modality == "video" else (128, 1)
    if modality == "audio" and spectrogram is not None:
        positions = 16 * 5
    assert projection.weight.shape == (48, positions * channels)
    assert_uniform(projection.weight, math.sqrt(6 / (positions * channels + positions * 48)))
    assert not projection.bias.any()


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
def test_dense_layers_start_glorot_uniform_and_q_k_v_each_by_itself(arrangement: str) -> None:
    model = drawn(arrangement=arrangement)
    special = {"video_tokens.patch_projection", "audio_tokens.patch_projection"}
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            assert module.query_key_value.weight.shape == (3 * 64, 48)
            for part in module.query_key_value.weight.chunk(3):
                assert_uniform(part, math.sqrt(6 / (48 + 64)))
        elif isinstance(module, nn.Linear) and name not in special:
            if not name.endswith("query_key_value"):
                assert_uniform(module.weight, math.sqrt(6 / sum(module.weight.shape)))
            assert module.bias is None or not module.bias.any(), name


def test_positions_start_as_a_normal_cut_at_two_deviations() -> None:
    torch.manual_seed(0)
    positions = Positions((300, 200), 64)
    for table in positions.tables:
        assert_cut_normal(table, 64**-0.5)


def test_agg_starts_glorot_normal() -> None:
    torch.manual_seed(0)
    agg = torch.empty(20_000)
    init_agg(agg)
    assert agg.std().item() == pytest.approx(20_000**-0.5, rel=0.03)
    assert_cut_normal(agg, 20_000**-0.5 / 0.8796)


def test_the_relative_bias_starts_uniform_within_a_twentieth() -> None:
    text = TextConfig(vocab_size=50, relative_buckets=512, relative_max_distance=1024)
    table = drawn(text=text).encoders["text"].relative_bias
    assert table is not None
    assert_uniform(table.weight, 0.05)


def test_a_classifier_starts_glorot_normal_and_one_of_many_labels_rare() -> None:
    torch.manual_seed(0)
    one = Classifier(ClassifierConfig(num_classes=400), 512)
    assert_cut_normal(one.linear.weight, math.sqrt(2 / (400 + 512)) / 0.8796)
    assert not one.linear.bias.any()
    several = Classifier(ClassifierConfig(num_classes=527, multi_label=True), 512)
    assert_uniform(several.linear.weight, math.sqrt(6 / (527 + 512)))
    torch.testing.assert_close(several.linear.bias, torch.full((527,), -math.log(526)))


def test_a_whole_classifier_model_starts_with_its_classifiers_own_weights() -> None:
    model = drawn(**vars(as_classifier(preset("tiny"), "audio", 11)))
    assert model.classifier is not None
    torch.testing.assert_close(model.classifier.linear.bias, torch.full((11,), -math.log(10)))


def test_all_weights_can_be_drawn_anew() -> None:
    with torch.device("meta"):
        model = VATT(preset("tiny"))
    model = model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(math.nan)
    model.init_weights()
    assert [name for name, value in model.state_dict().items() if value.isnan().any()] == []


def test_a_fine_tuned_audio_model_drops_no_tokens_even_where_audio_has_its_own_share() -> None:
    config = as_classifier(replace(preset("tiny"), audio_drop_token=0.5), "audio", CLASSES)
    model = VATT(config).train()
    assert model.audio_tokens(torch.rand(1, 6_400))[0].shape[1] == 1 + config.audio.num_tokens
