"""CLIP, SigLIP and SigLIP 2 compared with their own processors and networks, called by hand."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_models import SENTENCES
from torch import Tensor

from vatt import FeatureExtractor, read_view
from vatt.encoders.frames import FRAMES, distinct_frames, encode_frames
from vatt.encoders.transformers_loading import load_transformers
from vatt.errors import UserError

KINDS = ("clip", "siglip", "siglip2")
SHORT, LONG = "a dog barks", "a woman explains how to cut an onion while rain falls " * 6


def by_hand_of_frames(folder: Path, frames: Tensor) -> Tensor:
    """Mean of the unit vectors of frames, of unit length, as their library computes them."""
    from PIL import Image

    transformers = load_transformers()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pictures = [Image.fromarray(frame) for frame in frames.numpy()]
    with torch.inference_mode():
        inputs = processor(images=pictures, return_tensors="pt")
        vectors = model.get_image_features(**inputs).pooler_output
    return F.normalize(F.normalize(vectors, dim=-1).mean(dim=0), dim=-1)


def by_hand_of_text(folder: Path, text: str) -> Tensor:
    """Vector of a text of unit length, as their library computes it."""
    transformers = load_transformers()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    padding = True if "clip" in folder.name else "max_length"
    inputs = processor(text=[text], padding=padding, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_video_are_what_its_library_makes_of_the_same_frames(
    kind: str, saved: Callable[[str], Path], video: Path
) -> None:
    features = FeatureExtractor.from_pretrained(saved(kind), device="cpu").extract(video)
    assert features.start_seconds.tolist() == [0, 4, 8]
    assert features.end_seconds.tolist() == [4, 8, 10]  # the end of the file
    rows = []
    for start in features.start_seconds.tolist():
        frames = read_view(video, start_seconds=start, video=FRAMES, audio=None).video
        assert frames is not None
        assert frames.shape == (8, 72, 96, 3)
        rows.append(by_hand_of_frames(saved(kind), frames))
    torch.testing.assert_close(features["video_joint"], torch.stack(rows), rtol=0, atol=1e-5)
    assert (rows[0] - rows[1]).abs().max() > 1e-3


@pytest.mark.parametrize("text", [SHORT, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_shorter_and_longer_than_the_limit_are_what_their_library_makes_of_them(
    kind: str, text: str, saved: Callable[[str], Path]
) -> None:
    extractor = FeatureExtractor.from_pretrained(saved(kind), device="cpu")
    expected = by_hand_of_text(saved(kind), text)
    if text == LONG:
        with pytest.warns(UserWarning, match=r"reads (24|64) tokens, longer texts are cut, first"):
            vector = extractor.encode_text(text)[0]
    else:  # beside a longer one, too
        vector = extractor.encode_text([text, "rain falls on a street"])[0]
    torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)


def test_features_of_the_backbone_come_before_the_projection(
    saved: Callable[[str], Path],
) -> None:
    extractor = FeatureExtractor.from_pretrained(saved("clip"), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    features = extractor.encode_video(image, space=None, normalize=False)
    assert features.shape == (1, 32)
    projected = extractor.model.visual_projection(features)
    expected = extractor.encode_video(image, space="joint")
    torch.testing.assert_close(F.normalize(projected, dim=-1), expected, rtol=0, atol=1e-5)
    words = extractor.encode_text(SHORT, space=None, normalize=False)
    expected = extractor.encode_text(SHORT)
    projected = F.normalize(extractor.model.text_projection(words), dim=-1)
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-5)


def test_pictures_of_several_sizes_share_a_batch(saved: Callable[[str], Path]) -> None:
    draw = np.random.default_rng(1)
    images = [draw.integers(0, 256, size, dtype=np.uint8) for size in ((40, 60, 3), (33, 20, 3))]
    for kind in KINDS:
        extractor = FeatureExtractor.from_pretrained(saved(kind), device="cpu")
        both = extractor.encode_video(images)
        alone = torch.cat([extractor.encode_video(image) for image in images])
        torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)
        expected = by_hand_of_frames(saved(kind), torch.from_numpy(images[1])[None])
        torch.testing.assert_close(both[1], expected, rtol=0, atol=1e-5)


def test_windows_of_every_length_have_eight_frames(
    saved: Callable[[str], Path], video: Path
) -> None:
    extractor = FeatureExtractor.from_pretrained(saved("clip"), device="cpu")
    features = extractor.extract(video, window_seconds=10)
    assert features["video_joint"].shape == (1, 16)
    plan = FRAMES.of_length(10)
    frames = read_view(video, start_seconds=0, video=plan, audio=None).video
    assert frames is not None
    assert len(frames) == 8
    expected = by_hand_of_frames(saved("clip"), frames)
    torch.testing.assert_close(features["video_joint"][0], expected, rtol=0, atol=1e-5)


def test_frames_that_repeat_are_encoded_once_and_count_as_often_as_they_are_shown() -> None:
    first, second = (torch.full((1, 2, 3, 3), value, dtype=torch.uint8) for value in (1, 2))
    row = torch.cat([first, first, first, second, first])
    frames, counts = distinct_frames(row)
    assert frames[:, 0, 0, 0].tolist() == [1, 2, 1]
    assert counts.tolist() == [3, 1, 1]
    encoded: list[int] = []

    def encode(windows: list[Tensor]) -> dict[str | None, Tensor]:
        encoded.extend(len(one) for one in windows)
        values = torch.cat(windows)[:, 0, 0, 0].float()
        return {"joint": torch.stack([values - 1, 2 - values], dim=1) * 5, None: values[:, None]}

    means = encode_frames([row, second], encode)
    assert encoded == [3, 1]
    torch.testing.assert_close(means["joint"], torch.tensor([[0.2, 0.8], [1.0, 0.0]]))
    torch.testing.assert_close(means[None], torch.tensor([[1.2], [2.0]]))


def test_in_bfloat16_weights_stay_float32_and_vectors_are_nearly_the_same(
    saved: Callable[[str], Path], video: Path
) -> None:
    exact = FeatureExtractor.from_pretrained(saved("clip"), device="cpu")
    mixed = FeatureExtractor.from_pretrained(saved("clip"), device="cpu", dtype="bfloat16")
    assert {weight.dtype for weight in mixed.model.parameters()} == {torch.float32}
    one, other = exact.encode_video(video), mixed.encode_video(video)
    assert other.dtype == torch.float32
    assert 1e-6 < (one - other).abs().max() < 0.05
    assert exact.encoder.digest() == mixed.encoder.digest()


def test_the_tokenizer_of_siglip_needs_sentencepiece_and_says_so(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """The layout of the published models: `preprocessor_config.json` and `spiece.model`."""
    folder = Path(shutil.copytree(saved("siglip"), tmp_path / "siglip"))
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    settings["processor_class"] = "SiglipProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    for name in ("processor_config.json", "tokenizer.json"):
        (folder / name).unlink()
    words = {
        **{"tokenizer_class": "SiglipTokenizer", "model_max_length": 24},
        **{"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    if find_spec("sentencepiece") is None:
        (folder / "spiece.model").touch()
        with pytest.raises(UserError, match="needs sentencepiece: pip install sentencepiece"):
            FeatureExtractor.from_pretrained(folder, device="cpu")
        return
    from sentencepiece import SentencePieceTrainer

    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 60}
    SentencePieceTrainer.train(
        **{"input": str(tmp_path / "sentences.txt"), "model_prefix": str(folder / "spiece")},
        **{**ids, "hard_vocab_limit": False, "minloglevel": 2},
    )
    vector = FeatureExtractor.from_pretrained(folder, device="cpu").encode_text(SHORT)[0]
    torch.testing.assert_close(vector, by_hand_of_text(folder, SHORT), rtol=0, atol=1e-5)
