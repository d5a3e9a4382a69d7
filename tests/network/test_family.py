"""Every member of the family of models runs, learns and comes back from disk."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from vatt.batch import Batch
from vatt.config.geometry import AudioConfig, SpectrogramConfig, TextConfig, VideoConfig
from vatt.config.model import HeadConfig, VATTConfig
from vatt.config.presets import TINY, as_classifier
from vatt.models.checkpoint import load_model, save_model
from vatt.network.log_mel import LogMel
from vatt.network.model import VATT

ROWS, CANDIDATES, CLASSES = 3, 2, 5
MEL = SpectrogramConfig(
    window_samples=256, hop_samples=128, num_mels=20, max_hertz=3600.0, patch_size=(8, 5)
)
WAVEFORM = AudioConfig(sample_rate=8_000, num_samples=6_400, patch_size=128)
TINY_VIDEO = VideoConfig(num_frames=8, frame_rate=10.0, image_size=16, patch_size=(4, 8, 8))


def member(
    arrangement: str = "agnostic", audio: str = "waveform", tower: str = "t5", kind: str = "fac"
) -> VATTConfig:
    return VATTConfig(
        arrangement=arrangement,
        video=TINY_VIDEO,
        audio=WAVEFORM if audio == "waveform" else replace(WAVEFORM, spectrogram=MEL),
        text=TextConfig(tower=tower, vocab_size=50, d_embedding=12, max_words=6, d_linear=20),
        encoder=TINY,
        head=HeadConfig(kind=kind, d_va=24, d_vt=12, d_joint=10),
        d_post=28,
    )


MEMBERS = [
    member(arrangement, audio, tower, kind)
    for arrangement, audio, tower, kind in product(
        ("agnostic", "specific"), ("waveform", "spectrogram"), ("t5", "linear"), ("fac", "joint")
    )
    if (arrangement, tower) != ("agnostic", "linear")
]


def named(config: VATTConfig) -> str:
    assert config.head is not None
    sound = "waveform" if config.audio.spectrogram is None else "spectrogram"
    return f"{config.arrangement}-{sound}-{config.text.tower}-{config.head.kind}"


def built(config: VATTConfig) -> VATT:
    torch.manual_seed(0)
    return VATT(config)


def batch_for(config: VATTConfig, *names: str) -> Batch:
    generator = torch.Generator().manual_seed(1)
    size = config.video.image_size
    shape = (ROWS, config.video.num_frames, size, size, 3)
    text = torch.randint(1, 50, (ROWS, CANDIDATES, 6), generator=generator)
    text[0, 0, 4:] = 0
    parts = {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "audio": torch.rand(ROWS, config.audio.num_samples, generator=generator) * 2 - 1,
        "text": text,
    }
    return Batch(**{name: parts[name] for name in names or config.modalities})


def without_gradient(model: VATT, outputs: list[torch.Tensor]) -> list[str]:
    """Names of the weights that a random combination of the outputs does not depend on."""
    # no plain sum: after BatchNorm that and the sum of squares are constant
    sum((value * torch.randn_like(value)).sum() for value in outputs).backward()
    return [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("config", MEMBERS, ids=named)
def test_every_member_of_the_family_runs_and_learns(config: VATTConfig, tmp_path: Path) -> None:
    model = built(config).train()
    output = model(batch_for(config))
    widths = {name: config.feature_width(name) for name in config.modalities}
    assert {name: tuple(value.shape) for name, value in output.features.items()} == {
        "video": (ROWS, widths["video"]),
        "audio": (ROWS, widths["audio"]),
        "text": (ROWS, CANDIDATES, widths["text"]),
    }
    if config.head.kind == "fac":
        expected = {"video_va": (24,), "video_vt": (12,), "audio_va": (24,), "text_vt": (2, 12)}
    else:
        expected = {"video_joint": (10,), "audio_joint": (10,), "text_joint": (2, 10)}
    assert {name: tuple(value.shape[1:]) for name, value in output.embeddings.items()} == expected
    assert output.logits is None
    assert without_gradient(model, list(output.embeddings.values())) == []

    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == VATTConfig.from_dict(config.to_dict()) == config
    batch = batch_for(config)
    model.eval()
    for name, value in loaded(batch).embeddings.items():
        torch.testing.assert_close(value, model(batch).embeddings[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["fac", "joint"])
@pytest.mark.parametrize("present", [("video", "audio"), ("video", "text"), ("audio", "text")])
def test_what_a_batch_lacks_is_neither_computed_nor_given(
    present: tuple[str, ...], kind: str
) -> None:
    model = built(member("specific", kind=kind)).eval()
    called = []
    for name in model.config.modalities:
        for part in (getattr(model, f"{name}_tokens"), model.encoders[name]):
            part.register_forward_pre_hook(lambda _, __, name=name: called.append(name))
    output = model(batch_for(model.config, *present))
    assert set(called) == set(output.features) == set(present)
    assert {name.split("_")[0] for name in output.embeddings} == set(present)


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
@pytest.mark.parametrize("modalities", [("video", "audio"), ("video", "text"), ("audio",)])
def test_a_model_of_some_modalities_has_only_their_weights(
    modalities: tuple[str, ...], arrangement: str
) -> None:
    whole = member(arrangement)
    config = replace(whole, modalities=modalities, head=whole.head if len(modalities) > 1 else None)
    model = built(config)
    for name in {"video", "audio", "text"} - set(modalities):
        assert not [weight for weight in model.state_dict() if name in weight]
        with pytest.raises(ValueError, match=rf"this model has .*, not {name}"):
            model.encode_tokens(name, torch.zeros(1))
    output = model(batch_for(config, "video", "audio", "text"))
    assert set(output.features) == set(modalities)
    outputs = output.embeddings or output.features
    assert without_gradient(model, list(outputs.values())) == []


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
@pytest.mark.parametrize("modality", ["video", "audio", "image"])
@pytest.mark.parametrize("sound", ["waveform", "spectrogram"])
def test_a_classifier_runs_and_learns(arrangement: str, modality: str, sound: str) -> None:
    config = as_classifier(member(arrangement, sound), modality, CLASSES)
    assert VATTConfig.from_dict(config.to_dict()) == config
    model = built(config).train()
    output = model(batch_for(config))
    assert output.logits is not None
    assert (output.logits.shape, output.logits.dtype) == ((ROWS, CLASSES), torch.float32)
    assert output.embeddings == {}
    assert without_gradient(model, [output.logits]) == []


def test_an_image_classifier_reads_one_patch_in_time_with_the_positions_of_the_video() -> None:
    video_model = member("specific")
    config = as_classifier(video_model, "image", CLASSES)
    assert config.video.num_frames == video_model.video.patch_size[0] == 4
    assert config.modalities == ("video",)
    model = built(config)
    assert [len(t) for t in model.video_tokens.positions.tables] == list(video_model.video.grid)
    model.load_state_dict(built(video_model).state_dict(), strict=False)
    assert model.encode_video(batch_for(config).video).shape == (ROWS, TINY.d_model)


def test_a_classifier_drops_no_tokens_unless_asked() -> None:
    config = replace(member(), drop_token=0.5)
    assert as_classifier(config, "video", CLASSES).drop_token == 0
    assert as_classifier(config, "video", CLASSES, drop_token=0.25).drop_token == 0.25
    with pytest.raises(ValueError, match="video, audio and image, not on 'text'"):
        as_classifier(config, "text", CLASSES)


def test_an_image_is_a_video_that_stands_still_for_one_patch() -> None:
    model = built(member()).eval()
    image = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    still = image[:, None].repeat(1, 4, 1, 1, 1)
    torch.testing.assert_close(model.encode_image(image), model.encode_video(still))


def test_a_spectrogram_model_hears_the_same_in_a_waveform_and_in_its_log_mel() -> None:
    model = built(member("specific", "spectrogram")).eval()
    log_mel = LogMel(
        sample_rate=8_000, window_samples=256, hop_samples=128, num_mels=20, max_hertz=3600.0
    )
    waveform = batch_for(model.config).audio
    torch.testing.assert_close(model.encode_audio(waveform), model.encode_audio(log_mel(waveform)))
