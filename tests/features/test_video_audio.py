"""Vectors of picture and sound together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from media_files import KINDS, make_file
from tiny_models import make_model

from vatt import FeatureExtractor, Index, MediaError, preset
from vatt.config.model import HeadConfig
from vatt.config.options import ExtractOptions, IndexOptions
from vatt.errors import UserError
from vatt.features.extraction import Extraction
from vatt.features.inputs import find_items
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.view import read_view

CONFIG = preset("tiny")


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(make_model(), Tokenizer.train(["a dog barks"], 20), device="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for name in ("plain.mp4", "silent.mp4", "sound.m4a"):
        make_file(folder / name, KINDS[name])
    return folder


def sum_of_units(extractor: FeatureExtractor, clip, space: str) -> torch.Tensor:
    model = extractor.model
    video = model.embed_video(clip.video[None])[space]
    audio = model.embed_audio(clip.audio[None])
    beside = audio[space] if space in audio else model.head.va_to_vt(audio["va"])
    return F.normalize(F.normalize(video, dim=-1) + F.normalize(beside, dim=-1), dim=-1)[0]


@pytest.mark.parametrize("space", ["va", "vt"])
def test_vector_of_both_is_the_sum_of_their_unit_vectors(extractor, media, space):
    features = extractor.extract(media / "plain.mp4", modalities="video_audio", space=space)
    assert features.keys() == (f"video_audio_{space}",)
    start = float(features.start_seconds[1])
    clip = read_view(
        str(media / "plain.mp4"), start_seconds=start, video=CONFIG.video, audio=CONFIG.audio
    )
    with torch.no_grad():
        expected = sum_of_units(extractor, clip, space)
    torch.testing.assert_close(features[f"video_audio_{space}"][1], expected, atol=1e-5, rtol=0)


def test_joint_head_has_one_space_for_both(media):
    extractor = FeatureExtractor(
        make_model(replace(CONFIG, head=HeadConfig(kind="joint"))), device="cpu"
    )
    assert extractor.spaces("video_audio") == ("joint",)
    assert extractor.encode_video_audio(media / "plain.mp4").norm().item() == pytest.approx(1)


def test_sound_of_the_file_itself_may_be_given(extractor, media):
    own = extractor.encode_video_audio([media / "plain.mp4"])
    given = extractor.encode_video_audio([media / "plain.mp4"], audio=[media / "plain.mp4"])
    torch.testing.assert_close(given, own, atol=1e-6, rtol=0)
    noise = torch.rand(24_000) - 0.5
    other = extractor.encode_video_audio([media / "plain.mp4"], audio=[(noise, 8_000)])
    assert (other - own).abs().max() > 1e-3


@pytest.mark.parametrize("sound_seconds", [0.5, 9.0])
def test_windows_past_the_end_of_the_shorter_of_two_files_are_left_out(
    extractor, media, sound_seconds
):
    noise = torch.rand(int(8_000 * sound_seconds)) - 0.5
    videos, sounds = [media / "plain.mp4"], [(noise, 8_000)]
    vector = extractor.encode_video_audio(videos, audio=sounds, num_windows=9)
    assert vector.norm().item() == pytest.approx(1)


def test_picture_array_takes_a_waveform(extractor):
    frames = torch.randint(0, 255, (8, 40, 60, 3), dtype=torch.uint8)
    waveform = torch.rand(16_000) - 0.5
    vector = extractor.encode_video_audio(
        frames, audio=waveform, frame_rate=5.0, sample_rate=8_000, space="va"
    )
    assert vector.shape == (1, CONFIG.head.d_va)
    without = extractor.encode_video(frames, frame_rate=5.0, space="va")
    assert (vector - without).abs().max() > 1e-3


def test_file_without_sound_has_no_vector_of_both(extractor, media):
    with pytest.raises(MediaError, match=r"silent\.mp4.* has no picture with sound"):
        extractor.encode_video_audio(media / "silent.mp4")


def test_numbers_of_videos_and_sounds_must_agree(extractor, media):
    with pytest.raises(UserError, match="one for each"):
        extractor.encode_video_audio([media / "plain.mp4"] * 2, audio=[media / "sound.m4a"])


def test_both_have_no_features_of_the_backbone(extractor, media):
    with pytest.raises(UserError, match="common space only"):
        extractor.extract(media / "plain.mp4", modalities="video_audio", space=None)


def test_model_without_sound_has_no_vector_of_both(media):
    extractor = FeatureExtractor(
        make_model(replace(CONFIG, modalities=("video", "text"))), device="cpu"
    )
    with pytest.raises(UserError, match="not video with audio"):
        extractor.encode_video_audio(media / "plain.mp4")


def test_index_of_both_is_searched_by_words_and_by_both(extractor, media, tmp_path):
    options = ExtractOptions(modalities=("video", "video_audio"), num_workers=0)
    out = tmp_path / "features"
    out.mkdir()
    items = find_items([str(media / "plain.mp4"), str(media / "silent.mp4")])
    report = Extraction(extractor, out, options).run(items)
    assert report.num_extracted == 2
    index, summary = Index.build(out, tmp_path / "index", IndexOptions())
    assert set(index.arrays) == {"video_va", "video_vt", "video_audio_va", "video_audio_vt"}
    rows = summary.arrays["video_audio_vt"]["rows"]
    assert 0 < rows < summary.arrays["video_vt"]["rows"]  # the silent file has none
    index.extractor = extractor
    hits = index.search("a dog barks", modality="video_audio", k=3)
    assert {hit.file for hit in hits} == {str((media / "plain.mp4").absolute())}
