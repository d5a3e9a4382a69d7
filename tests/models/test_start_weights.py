"""Start weights: a classifier begins with the tower of a saved model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vatt.config.model import VATTConfig
from vatt.config.presets import as_classifier, preset
from vatt.models.checkpoint import save_model
from vatt.models.start_weights import load_backbone
from vatt.network.model import VATT
from vatt.network.tokens import interpolation_matrix

TINY = preset("tiny")


def drawn(config: VATTConfig, seed: int = 0) -> VATT:
    torch.manual_seed(seed)
    return VATT(config)


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_classifier_starts_from_the_tower_of_a_pretrained_model(
    tmp_path: Path, arrangement: str, modality: str
) -> None:
    pretrained = drawn(replace(TINY, arrangement=arrangement))
    save_model(pretrained, tmp_path)
    config = as_classifier(pretrained.config, modality, 5)
    model = drawn(config, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_backbone(model, tmp_path)
    theirs = pretrained.state_dict()
    for name, value in model.state_dict().items():
        expected = before[name] if name.startswith("classifier.") else theirs[name]
        assert torch.equal(value, expected), name
    assert any(not torch.equal(theirs[n], before[n]) for n in before if n in theirs)


def test_positions_are_interpolated_where_clips_are_larger(tmp_path: Path) -> None:
    pretrained = drawn(TINY)
    save_model(pretrained, tmp_path)
    larger = replace(TINY.video, image_size=48)
    model = drawn(as_classifier(TINY, "video", 5, video=larger), seed=1)
    load_backbone(model, tmp_path)
    name = "video_tokens.positions.tables.1"
    theirs, ours = pretrained.state_dict()[name], model.state_dict()[name]
    assert len(ours) == 6
    assert torch.allclose(ours, interpolation_matrix(4, 6) @ theirs, atol=1e-6)
    kept = replace(larger, position_grid=TINY.video.grid)  # interpolated at every step instead
    same = drawn(as_classifier(TINY, "video", 5, video=kept), seed=1).eval()
    load_backbone(same, tmp_path)
    assert torch.equal(same.state_dict()[name], theirs)
    clips = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    assert torch.allclose(same.encode_video(clips), model.eval().encode_video(clips), atol=1e-5)


def test_another_tower_is_refused_and_named(tmp_path: Path) -> None:
    save_model(drawn(TINY), tmp_path / "whole")
    save_model(drawn(as_classifier(TINY, "video", 5)), tmp_path / "video")
    wider = replace(TINY, encoder=replace(TINY.encoder, d_ff=32))
    specific = replace(TINY, arrangement="specific")
    for source, config, modality, message in (
        ("whole", wider, "video", "encoder.d_ff is 64 there and 32 here"),
        ("whole", specific, "video", "arrangement is agnostic there and specific here"),
        ("video", TINY, "audio", "has video: there is no audio"),
        ("none", TINY, "video", "no model at"),
    ):
        with pytest.raises(ValueError, match=message):
            load_backbone(drawn(as_classifier(config, modality, 5)), tmp_path / source)
    load_backbone(drawn(as_classifier(TINY, "video", 9)), tmp_path / "video")  # other classes


def test_towers_that_are_left_behind_may_differ(tmp_path: Path) -> None:
    other = replace(TINY.text, vocab_size=99)
    saved = drawn(replace(TINY, text=other, head=None))
    save_model(saved, tmp_path)
    loaded = drawn(as_classifier(TINY, "video", 5))
    with torch.no_grad():
        loaded.video_tokens.agg.zero_()
    load_backbone(loaded, tmp_path)
    assert torch.equal(loaded.video_tokens.agg, saved.video_tokens.agg)
