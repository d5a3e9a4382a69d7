"""Models of sentence-transformers compared with that library itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vatt import FeatureExtractor, read_view
from vatt.encoders.frames import FRAMES
from vatt.encoders.sentence_transformers import SentenceTransformerEncoder
from vatt.encoders.transformers_loading import load_sentence_transformers
from vatt.errors import UserError

SHORT, LONG = "a dog barks", "a woman explains how to cut an onion while rain falls " * 6


def library_model(folder: Path) -> Any:
    """The model as its library loads it."""
    return load_sentence_transformers().SentenceTransformer(str(folder), device="cpu")


@pytest.mark.filterwarnings("ignore:the model reads 24 tokens")
@pytest.mark.parametrize("kind", ["sentence_transformer", "sentence_clip"])
def test_texts_have_the_vectors_of_the_library(kind: str, saved: Callable[[str], Path]) -> None:
    extractor = FeatureExtractor.from_pretrained(saved(kind), device="cpu")
    texts = [SHORT, LONG, "rain falls"]
    expected = torch.from_numpy(library_model(saved(kind)).encode(texts))
    vectors = extractor.encode_text(texts, normalize=False)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    vectors = extractor.encode_text(texts)
    torch.testing.assert_close(vectors, F.normalize(expected, dim=-1), rtol=0, atol=1e-5)


def test_video_is_the_mean_of_the_unit_vectors_that_the_library_gives_its_frames(
    saved: Callable[[str], Path], video: Path
) -> None:
    from PIL import Image

    extractor = FeatureExtractor.from_pretrained(saved("sentence_clip"), device="cpu")
    row = extractor.extract(video)["video_joint"][1]
    frames = read_view(video, start_seconds=4.0, video=FRAMES, audio=None).video
    assert frames is not None
    pictures = [Image.fromarray(frame) for frame in frames.numpy()]
    vectors = torch.from_numpy(library_model(saved("sentence_clip")).encode(pictures))
    expected = F.normalize(F.normalize(vectors, dim=-1).mean(dim=0), dim=-1)
    torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
    assert extractor.similarity(text=[SHORT, "rain"], video=video).shape == (2, 1)


def test_queries_and_documents_have_the_prompts_of_the_model(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    model = library_model(saved("sentence_clip"))
    model.prompts = {"query": "a picture of ", "document": ""}
    model.save(str(tmp_path / "prompts"))
    extractor = FeatureExtractor.from_pretrained(tmp_path / "prompts", device="cpu")
    plain = FeatureExtractor.from_pretrained(saved("sentence_clip"), device="cpu")
    expected = plain.encode_text("a picture of a dog")
    torch.testing.assert_close(extractor.encode_text("a dog"), expected, rtol=0, atol=1e-5)
    count = plain.encoder.count_tokens("a picture of a dog")
    assert extractor.encoder.count_tokens("a dog") == count
    assert extractor.encoder.digest() != plain.encoder.digest()


def test_a_model_of_texts_only_says_so(saved: Callable[[str], Path], video: Path) -> None:
    extractor = FeatureExtractor.from_pretrained(saved("sentence_transformer"), device="cpu")
    assert extractor.encoder.modalities == ("text",)
    assert "text, spaces joint" in repr(extractor)
    with pytest.raises(UserError, match="this model has text, not video"):
        extractor.encode_video(video)
    with pytest.raises(UserError, match="this model has only text, and media have windows"):
        extractor.extract(video)
    with pytest.raises(UserError, match="text '  ' holds no word"):
        extractor.encode_text("  ")


def test_sound_and_picture_together_are_the_sum_of_their_unit_vectors(
    saved: Callable[[str], Path], video: Path
) -> None:
    """With a model that takes both: two models of one width, one for each."""
    pictures, heard = str(saved("clip")), str(saved("clap"))
    load_sentence_transformers()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer

    class Both(Router):  # type: ignore[misc, unused-ignore]
        modalities = ("text", "image", "audio")
        processor = property(lambda self: self.sub_modules["audio"][0].processor)

    words, sounds = Transformer(pictures), Transformer(heard)
    router = Both(
        {"text": [words], "image": [words], "audio": [sounds]},
        default_route="text",
        route_mappings={
            (None, "text"): "text",
            (None, "image"): "image",
            (None, "audio"): "audio",
        },
    )
    encoder = SentenceTransformerEncoder(SentenceTransformer(modules=[router], device="cpu"))
    extractor = FeatureExtractor(encoder)
    assert encoder.modalities == ("video", "audio", "text")
    features = extractor.extract(video, window_seconds=1, modalities=["video", "audio"])
    both = extractor.extract(video, window_seconds=1, modalities="video_audio")
    expected = F.normalize(features["video_joint"] + features["audio_joint"], dim=-1)
    torch.testing.assert_close(both["video_audio_joint"], expected, rtol=0, atol=1e-5)
    alone = FeatureExtractor.from_pretrained(saved("clap"), device="cpu").extract(video)
    torch.testing.assert_close(features["audio_joint"], alone["audio_joint"], rtol=0, atol=1e-5)
