"""What a model costs: the count from its configuration against torch's, the paper's, [C]'s."""

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vatt.batch import Batch
from vatt.cli import main
from vatt.config.geometry import SpectrogramConfig, VideoConfig
from vatt.config.model import EncoderConfig, HeadConfig, VATTConfig
from vatt.config.presets import BASE, LARGE, MEDIUM, PRESETS, TINY, as_classifier, preset
from vatt.models.checkpoint import CONFIG_KEY, NETWORK_PREFIX, save_model
from vatt.network.flops import Flops, count_flops, count_parameters, published
from vatt.network.model import VATT

CAPTIONS = 3
DROP_RATES = (0.0, 0.25, 0.5, 0.75)
TINY_MODEL = preset("tiny")
SPECIFIC = replace(
    TINY_MODEL,
    arrangement="specific",
    # widths that nothing shares, so that no two can be mistaken for each other
    video_encoder=EncoderConfig(
        num_layers=3, d_model=24, d_ff=40, num_heads=3, d_kv=4, dropout=0.0
    ),
    text_encoder=replace(TINY, d_model=16),
)
AGNOSTIC = replace(TINY_MODEL, encoder=replace(TINY, d_kv=12), d_post=20)
SPECTROGRAM = SpectrogramConfig(
    window_samples=1000, hop_samples=64, num_mels=20, max_hertz=4000.0, patch_size=(8, 5)
)
MODELS = {
    "agnostic": AGNOSTIC,
    "specific": SPECIFIC,
    "audio keeps more": replace(SPECIFIC, drop_token=0.98, audio_drop_token=0.3),
    "spectrogram": replace(
        SPECIFIC,
        audio=replace(TINY_MODEL.audio, spectrogram=SPECTROGRAM),
        audio_encoder=replace(TINY, bias=False),
    ),
    "linear text": replace(
        SPECIFIC, text=replace(TINY_MODEL.text, tower="linear", d_linear=48), text_encoder=None
    ),
    "joint head": replace(SPECIFIC, head=HeadConfig(kind="joint", d_joint=20)),
    "audio head of 2 layers": replace(SPECIFIC, head=HeadConfig(d_va=24, d_vt=12, audio_layers=2)),
    "video and text": replace(SPECIFIC, modalities=("video", "text")),
    "video and audio": replace(AGNOSTIC, modalities=("video", "audio")),
    "no head": replace(AGNOSTIC, head=None),
    "video classifier": as_classifier(SPECIFIC, "video", 7),
    "audio classifier": as_classifier(AGNOSTIC, "audio", 7),
    "text alone": replace(AGNOSTIC, modalities=("text",), head=None),
}


def one_sample(config: VATTConfig) -> Batch:
    size = config.video.image_size
    text = torch.arange(1, 1 + CAPTIONS * config.text.max_words) % config.text.vocab_size
    return Batch(
        video=torch.zeros(1, config.video.num_frames, size, size, 3),
        audio=torch.zeros(1, config.audio.num_samples),
        text=text.reshape(1, CAPTIONS, config.text.max_words),
    )


def counted_by_torch(model: VATT) -> int:
    # torch does not count the fused attention of the CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(one_sample(model.config))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_true_count_is_what_torch_counts_in_evaluation(name: str) -> None:
    config = MODELS[name]
    flops = count_flops(config, num_captions=CAPTIONS, drop_token=0.0)
    assert flops.total == counted_by_torch(VATT(config).eval())


@pytest.mark.parametrize("name", MODELS)
def test_true_count_is_what_torch_counts_in_training(name: str) -> None:
    config = MODELS[name]
    flops = count_flops(config, num_captions=CAPTIONS)
    assert flops.total == counted_by_torch(VATT(config).train())
    if config.drop_token and "video" in config.modalities:
        assert flops.video < count_flops(config, drop_token=0.0).video


def test_backward_pass_costs_twice_the_forward_pass_but_for_patches() -> None:
    model = VATT(preset("tiny")).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = model(one_sample(model.config))
        sum(value.square().sum() for value in output.embeddings.values()).backward()
    forward = count_flops(model.config, num_captions=CAPTIONS).total
    # patches need no gradient: 16 of 384 values, 25 of 128
    first_layers = 2 * (16 * 384 + 25 * 128) * TINY.d_model
    assert counter.get_total_flops() == 3 * forward - first_layers


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_true_count_of_the_base_video_tower_is_what_torch_counts(rate: float) -> None:
    config = replace(preset("bbs"), modalities=("video",), head=None, drop_token=rate)
    with torch.device("meta"):
        model = VATT(config).train()
        video = torch.empty(1, 32, 224, 224, 3)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.encode_video(video)
    assert count_flops(config) == Flops(video=counter.get_total_flops(), audio=0, text=0, heads=0)


def test_parts_of_the_count_are_those_of_the_model() -> None:
    config = MODELS["specific"]
    whole = count_flops(config, num_captions=CAPTIONS)
    without_text = count_flops(replace(config, modalities=("video", "audio")))
    assert (whole.video, whole.audio) == (without_text.video, without_text.audio)
    assert without_text.text == 0
    assert whole.heads == counted_by_torch_head(config)
    assert whole.total == whole.video + whole.audio + whole.text + whole.heads
    assert count_flops(config, num_captions=1).text * CAPTIONS == whole.text


def counted_by_torch_head(config: VATTConfig) -> int:
    model = VATT(config).eval()
    assert model.head is not None
    with FlopCounterMode(display=False) as counter:
        for name in config.modalities:
            rows = CAPTIONS if name == "text" else 1
            model.head(name, torch.zeros(rows, config.feature_width(name)))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("rate", "paper", "as_paper", "true_1_caption", "true_5_captions"),
    [
        (0.0, 784.8, 778.3, 862.8, 865.4),
        (0.25, 574.2, 570.8, 614.7, 617.3),
        (0.5, 375.4, 374.3, 388.5, 391.1),
        (0.75, 188.1, 188.6, 183.9, 186.5),
    ],
)
def test_mbs_costs_what_the_paper_says(
    rate: float, paper: float, as_paper: float, true_1_caption: float, true_5_captions: float
) -> None:
    mbs = preset("mbs")
    convention = count_flops(mbs, drop_token=rate, convention="paper").total / 1e9
    assert convention == pytest.approx(paper, rel=0.01)
    assert convention == pytest.approx(as_paper, rel=1e-3)
    one, five = (
        count_flops(mbs, num_captions=number, drop_token=rate).total / 1e9 for number in (1, 5)
    )
    assert one == pytest.approx(true_1_caption, rel=1e-3)
    assert five == pytest.approx(true_5_captions, rel=3e-4)
    assert published(mbs).flops[rate] == paper * 1e9


def video_classifier(encoder: EncoderConfig, num_frames: int, image_size: int) -> VATTConfig:
    video = VideoConfig(num_frames=num_frames, image_size=image_size, position_grid=(8, 14, 14))
    config = replace(preset("mbs"), video=video, video_encoder=encoder)
    return as_classifier(config, "video", 400)


@pytest.mark.parametrize(
    ("encoder", "num_frames", "image_size", "rate", "paper", "tolerance"),
    [
        (MEDIUM, 32, 224, 0.0, 548.1, 0.01),
        (MEDIUM, 32, 320, 0.75, 279.8, 0.01),
        # what the convention leaves out, softmax above all, grows with the square of the tokens
        (MEDIUM, 32, 320, 0.5, 572.5, 0.014),
        (MEDIUM, 32, 320, 0.25, 898.9, 0.014),
        (MEDIUM, 32, 320, 0.0, 1252.3, 0.014),
        (MEDIUM, 64, 224, 0.0, 1222.1, 0.014),
        (BASE, 32, 320, 0.0, 9.09e3 / 12, 0.014),  # the paper gives 4 clips of 3 crops together
        (LARGE, 32, 320, 0.0, 29.80e3 / 12, 0.014),
    ],
)
def test_fine_tuning_costs_nearly_what_the_paper_says(
    encoder: EncoderConfig,
    num_frames: int,
    image_size: int,
    rate: float,
    paper: float,
    tolerance: float,
) -> None:
    config = video_classifier(encoder, num_frames, image_size)
    flops = count_flops(config, drop_token=rate, convention="paper").total / 1e9
    assert paper * (1 - tolerance) < flops < paper * 0.9935
    if encoder == MEDIUM:
        assert published(config).flops[rate] == paper * 1e9


def test_paper_starts_at_the_spectrogram_and_projects_all_patches_of_the_agnostic_model() -> None:
    spectrogram, agnostic = MODELS["spectrogram"], AGNOSTIC
    true = count_flops(spectrogram, drop_token=0.0).audio
    paper = count_flops(spectrogram, drop_token=0.0, convention="paper").audio
    tokens, width, layers = 1 + 12 * 4, TINY.num_heads * TINY.d_kv, TINY.num_layers
    values = layers * 2 * tokens * tokens * width
    mel_bins = 2 * 100 * 513 * 20
    assert true - paper == values + mel_bins
    dropped = count_flops(agnostic, drop_token=0.5, convention="paper").video
    everything = count_flops(agnostic, drop_token=0.0, convention="paper").video
    encoder = agnostic.encoder
    wide = encoder.num_heads * encoder.d_kv
    blocks = [
        2 * length * (4 * encoder.d_model * wide + 2 * encoder.d_model * encoder.d_ff)
        + 2 * length * length * wide
        for length in (33, 17)
    ]
    assert everything - dropped == encoder.num_layers * (blocks[0] - blocks[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_captions": 0}, "num_captions must be at least 1, got 0"),
        ({"drop_token": 1.0}, r"drop_token must be in \[0, 1\), got 1.0"),
        ({"drop_token": -0.1}, r"drop_token must be in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_samples_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_flops(TINY_MODEL, **arguments)


# name: total, trainable with frozen word vectors. Source: variables of the official code.
OFFICIAL = {
    "bbs": (213_540_652, 193_877_292),
    "mbs": (280_569_132, 260_905_772),
    "lbs": (431_723_820, 412_060_460),
    "ma-medium": (182_653_696, 162_990_336),
    "bbs-spectrogram": (212_518_444, 192_855_084),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameters_are_those_of_the_official_code(name: str) -> None:
    config = preset(name)
    total, trainable = OFFICIAL[name]
    frozen = replace(config, text=replace(config.text, train_embedding=False))
    assert count_parameters(config).total == published(config).official_parameters == total
    assert count_parameters(frozen).trainable == trainable
    assert published(frozen) == published(config)


def test_parameters_of_each_part_are_those_of_the_official_code() -> None:
    bbs = count_parameters(preset("bbs"))
    assert (bbs.video, bbs.audio, bbs.text) == (87_446_016, 86_078_976, 19_038_252)
    assert (bbs.shared, bbs.word_vectors, bbs.heads) == (0, 65_536 * 300, 1_316_608)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_all_that_the_model_holds(name: str) -> None:
    model, count = VATT(MODELS[name]), count_parameters(MODELS[name])
    assert count.total == sum(value.numel() for value in model.state_dict().values())
    assert (count.shared > 0) == (MODELS[name].arrangement == "agnostic")
    assert (count.word_vectors > 0) == ("text" in MODELS[name].modalities)


def test_published_figures_are_those_of_the_same_network_only() -> None:
    mbs = preset("mbs")
    assert published(replace(mbs, drop_token=0.25, audio_drop_token=0.1)) == published(mbs)
    other = published(replace(mbs, video=replace(mbs.video, num_frames=16)))
    assert (other.parameters, other.official_parameters, other.flops) == (None, None, {})
    assert not published(video_classifier(BASE, 32, 320)).flops
    assert published(video_classifier(replace(MEDIUM, dropout=0.0), 32, 320)).flops
    patches = replace(mbs.video, patch_size=(8, 16, 16))
    assert not published(replace(as_classifier(mbs, "video", 400), video=patches)).flops
    assert {n: published(preset(n)).parameters for n in ("bbs", "mbs", "lbs", "ma-medium")} == {
        "bbs": 197e6,
        "mbs": 264e6,
        "lbs": 415e6,
        "ma-medium": 155e6,
    }


def shown(capsys: pytest.CaptureFixture[str], name: str) -> list[list[str]]:
    """Words of each line of `vatt doctor --model`."""
    assert main(["doctor", "--model", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    return [line.split() for line in lines]


def test_doctor_shows_what_a_preset_holds_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "mbs")
    assert lines[0] == ["mbs:", "video,", "audio,", "text;", "an", "encoder", "each"]
    for expected in (
        "video 32 frames of 224 × 224, 10 per second: 3.2 s 4 × 16 × 16 8 × 14 × 14 1,568 784",
        "audio 153,600 samples at 48 kHz: 3.2 s 128 1200 1,200 600",
        "text captions of 16 words, 65,536 in the vocabulary 16 16 16",
        "video 154,343,424",
        "total 280,569,132",
        "without word vectors 260,908,332",
        "that learn 280,566,572",
        "total in the official code 280,569,132",
        "total in the paper 264 million",
        "DropToken 0% 25% 50% 75%",
        "forward pass of one sample with 5 captions, GFLOPs",
        "heads < 0.1 < 0.1 < 0.1 < 0.1",
        "total 865.4 617.3 391.1 186.5",
        "total, as the paper counts 778.3 570.9 374.3 188.6",
        "total in the paper 784.8 574.2 375.4 188.1",
    ):
        assert expected.split() in lines
    assert not any(line[:2] == ["shared", "encoder"] for line in lines)


def test_doctor_shows_a_spectrogram_and_the_parts_of_the_agnostic_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = "audio 153,600 samples at 48 kHz: 3.2 s, 80 mel bins 16 × 5 9 × 16 144 144"
    assert expected.split() in shown(capsys, "bbs-spectrogram")
    lines = shown(capsys, "ma-medium")
    assert ["shared", "encoder", "151,156,736"] in lines
    assert ["total", "in", "the", "paper", "155", "million"] in lines


def test_doctor_shows_a_model_folder_and_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = VATT(MODELS["text alone"])
    save_model(model, tmp_path / "model")
    checkpoint = tmp_path / "last.ckpt"
    weights = {f"{NETWORK_PREFIX}{name}": value for name, value in model.state_dict().items()}
    torch.save({CONFIG_KEY: model.config.to_dict(), "state_dict": weights}, checkpoint)
    for path in (tmp_path / "model", checkpoint):
        lines = shown(capsys, str(path))
        assert [f"{path}:", "text;", "one", "encoder", "for", "all"] == lines[0]
        assert not {"video", "audio"} & {line[0] for line in lines if line}
        assert ["DropToken", "0%"] in lines  # words are not dropped
        assert ["forward", "pass", "of", "one", "sample,", "MFLOPs"] in lines
        assert ["total", f"{count_parameters(model.config).total:,}"] in lines


def test_doctor_lists_all_presets_as_a_table_for_markdown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--model", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows[2:]] == [name for name in PRESETS if name != "tiny"]
    assert rows[1][:2] == [":" + "-" * 16, "-------------:"]
    mbs = next(row for row in rows if row[0] == "mbs")
    assert mbs[1:3] == ["280.6 M", "264 M"]
    assert mbs[3:] == ["865.4", "778.3", "784.8", "391.1", "374.3", "375.4"]


def test_doctor_guesses_an_unknown_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--model", "ma-medum"]) == 1
    message = capsys.readouterr().err
    assert "no model 'ma-medum'. Did you mean ma-medium? Give a preset (ma-base, " in message
    assert message.count("\n") == 1
    assert main(["doctor", "--model", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "is not a model folder" in message


def test_doctor_shows_a_model_without_lightning() -> None:
    code = (
        "import sys; from vatt.cli import main; code = main(['doctor', '--model', 'tiny'])\n"
        "print({'lightning', 'wandb', 'av'} & sys.modules.keys()); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_counts_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        count_flops(TINY_MODEL).video = 0  # type: ignore[misc]
