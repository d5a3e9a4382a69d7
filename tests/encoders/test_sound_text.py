"""CLAP compared with its own processor and network, called by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vatt import FeatureExtractor
from vatt.config.geometry import AudioWindow
from vatt.encoders.transformers_loading import load_transformers
from vatt.errors import UserError
from vatt.media.clip import Clip, read_clip
from vatt.preprocess.windows import without_padding

SHORT, LONG = "a dog barks", "someone plays the guitar in a small room while rain falls " * 6


def by_hand(folder: Path, sounds: list[np.ndarray]) -> Tensor:
    """Unit vectors of sounds, each alone, as their library computes them."""
    transformers = load_transformers()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for sound in sounds:
        inputs = processor(audio=[sound], sampling_rate=16_000, return_tensors="pt")
        inputs["input_features"] = inputs["input_features"].float()
        with torch.inference_mode():
            rows.append(model.get_audio_features(**inputs).pooler_output[0])
    return torch.stack(rows)


def test_windows_of_a_sound_are_what_its_library_makes_of_the_same_samples(
    saved: Callable[[str], Path], video: Path
) -> None:
    features = FeatureExtractor.from_pretrained(saved("clap"), device="cpu").extract(video)
    assert features.start_seconds.tolist() == list(range(10))
    window = AudioWindow(num_samples=16_000, sample_rate=16_000)
    clips = [read_clip(video, start_seconds=start, video=None, audio=window) for start in range(10)]
    sounds = [clip.audio.numpy() for clip in clips if clip.audio is not None]
    expected = by_hand(saved("clap"), sounds)
    torch.testing.assert_close(features["audio_joint"], expected, rtol=0, atol=1e-5)
    assert [*features.arrays] == ["audio_joint"]


def test_a_sound_shorter_than_a_window_is_repeated_as_in_training(
    saved: Callable[[str], Path],
) -> None:
    extractor = FeatureExtractor.from_pretrained(saved("clap"), device="cpu")
    short = np.random.default_rng(0).normal(0, 0.1, 6_000).astype(np.float32)
    vector = extractor.encode_audio(short, sample_rate=16_000)
    expected = by_hand(saved("clap"), [short])
    torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)
    padded = np.pad(short, (0, 10_000))
    assert (by_hand(saved("clap"), [padded]) - expected).abs().max() > 1e-3
    last = extractor.extract(np.tile(short, 3), sample_rate=16_000)["audio_joint"][-1]
    torch.testing.assert_close(
        last, by_hand(saved("clap"), [np.tile(short, 3)[16_000:]])[0], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("text", [SHORT, LONG])
@pytest.mark.filterwarnings("ignore:the model reads 24 tokens")
def test_texts_shorter_and_longer_than_the_limit_are_what_their_library_makes_of_them(
    text: str, saved: Callable[[str], Path]
) -> None:
    folder, transformers = saved("clap"), load_transformers()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = processor(text=[text], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_text_features(**inputs).pooler_output
    vector = FeatureExtractor.from_pretrained(saved("clap"), device="cpu").encode_text(text)
    torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)


def test_the_vectors_of_a_fusion_model_are_not_drawn_at_random(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its processor declares a sound of each batch, drawn at random, to be longer."""
    folder = tmp_path / "fused"
    shutil.copytree(saved("clap"), folder)
    transformers = load_transformers()
    config = transformers.ClapConfig.from_pretrained(folder)
    config.audio_config.enable_fusion = True
    torch.manual_seed(0)
    transformers.ClapModel(config).save_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["feature_extractor"]["truncation"] = "fusion"
    (folder / "processor_config.json").write_text(json.dumps(settings))
    extractor = FeatureExtractor.from_pretrained(folder, device="cpu")
    draw = np.random.default_rng(0)
    sounds = [draw.normal(0, 0.1, 16_000).astype(np.float32) for _ in range(4)]
    together = [extractor.encode_audio(sounds, sample_rate=16_000) for _ in range(3)]
    alone = torch.cat([extractor.encode_audio(one, sample_rate=16_000) for one in sounds])
    for vectors in together:
        torch.testing.assert_close(vectors, alone, rtol=0, atol=1e-5)


def test_windows_longer_than_the_model_hears_are_refused(
    saved: Callable[[str], Path], video: Path
) -> None:
    extractor = FeatureExtractor.from_pretrained(saved("clap"), device="cpu")
    with pytest.raises(UserError, match="hears 1 s at once, got windows of 2 s: choose shorter"):
        extractor.extract(video, window_seconds=2)
    assert len(extractor.extract(video, window_seconds=0.5)["audio_joint"]) == 20


def test_only_zeros_past_the_end_are_left_out() -> None:
    def clip(values: list[float], coverage: float) -> Clip:
        sound = torch.tensor(values, dtype=torch.float32)
        return Clip(
            video=None,
            audio=sound,
            video_coverage=0.0,
            audio_coverage=coverage,
            start_seconds=0.0,
        )

    def left(values: list[float], coverage: float) -> int:
        audio = without_padding(clip(values, coverage)).audio
        assert audio is not None
        return len(audio)

    assert left([1, 2, 0, 0], 0.5) == 2
    assert left([1, 0, 0, 0], 0.75) == 3  # silence within the file stays
    assert left([0, 0, 1, 2], 0.5) == 4  # the sound begins late
    assert left([0, 0, 0, 0], 0.5) == 2
    assert left([0, 0, 0, 0], 1.0) == 4
    assert left([0, 0, 0, 0], 0.1) == 1
