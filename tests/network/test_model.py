"""The network: what it computes, what it leaves out, and what it refuses."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from vatt.batch import Batch, MicroBatches
from vatt.config.geometry import AudioConfig, TextConfig, VideoConfig
from vatt.config.model import HeadConfig, VATTConfig
from vatt.config.presets import TINY, preset
from vatt.network.layers import Encoder
from vatt.network.model import VATT
from vatt.network.tokens import draw_kept_tokens, patch_video

ARRANGEMENTS = ("agnostic", "specific")
ROWS, CANDIDATES = 4, 3


def make_model(arrangement: str = "agnostic", **changes: object) -> VATT:
    torch.manual_seed(0)
    return VATT(dataclasses.replace(preset("tiny"), arrangement=arrangement, **changes))


def make_batch(config: VATTConfig, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    size = config.video.image_size
    shape = (ROWS, config.video.num_frames, size, size, 3)
    text = torch.randint(1, config.text.vocab_size, (ROWS, CANDIDATES, 16), generator=generator)
    text[0, 0, 5:] = 0
    return Batch(
        video=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        audio=torch.rand(ROWS, config.audio.num_samples, generator=generator) * 2 - 1,
        text=text,
    )


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_embeddings_have_the_widths_of_the_common_spaces(arrangement: str) -> None:
    model = make_model(arrangement)
    output = model(make_batch(model.config))
    shapes = {name: tuple(value.shape) for name, value in output.embeddings.items()}
    assert shapes == {
        "video_va": (ROWS, 24),
        "video_vt": (ROWS, 12),
        "audio_va": (ROWS, 24),
        "text_vt": (ROWS, CANDIDATES, 12),
    }


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_trainable_weight_gets_a_gradient(arrangement: str) -> None:
    model = make_model(arrangement)
    output = model(make_batch(model.config))
    sum(value.square().mean() for value in output.embeddings.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_rows_without_a_modality_are_zeros_and_leave_the_others_alone() -> None:
    model = make_model().eval()
    batch = make_batch(model.config)
    audio_mask = torch.tensor([True, False, True, True])
    text_mask = torch.ones(ROWS, CANDIDATES, dtype=torch.bool)
    text_mask[2], text_mask[0, 1] = False, False
    partial = dataclasses.replace(batch, audio_mask=audio_mask, text_mask=text_mask)
    whole, some = model(batch).embeddings, model(partial).embeddings
    for name, mask in (("audio_va", audio_mask), ("text_vt", text_mask)):
        torch.testing.assert_close(some[name][mask], whole[name][mask], atol=1e-5, rtol=1e-5)
        assert not some[name][~mask].any()


def test_absent_rows_are_not_encoded() -> None:
    model = make_model().eval()
    rows: list[int] = []
    model.encoders["shared"].register_forward_pre_hook(
        lambda _, inputs: rows.append(len(inputs[0]))
    )
    batch = make_batch(model.config)
    model(dataclasses.replace(batch, audio_mask=torch.tensor([True, False, False, False])))
    assert rows == [ROWS, 1, ROWS * CANDIDATES]
    rows.clear()
    model(dataclasses.replace(batch, text=None, text_mask=None))
    assert rows == [ROWS, ROWS]


def test_dropped_patches_are_never_projected() -> None:
    model = make_model(drop_token=0.75).train()
    seen: list[int] = []
    projection = model.video_tokens.patch_projection
    projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    model.encode_video(make_batch(model.config).video)
    assert seen == [model.config.video.num_tokens // 4]


def test_audio_can_drop_another_share_of_its_tokens_than_video() -> None:
    model = make_model(drop_token=0.75, audio_drop_token=0.5)
    config = model.config
    video, audio = (
        model.encode_tokens(name, getattr(make_batch(config), name)) for name in ("video", "audio")
    )
    assert video.shape[1] == 1 + config.video.num_tokens // 4
    assert audio.shape[1] == 1 + config.audio.num_tokens // 2


def test_t5_drops_out_its_whole_input_and_the_others_their_positions() -> None:
    encoder = dataclasses.replace(TINY, dropout=0.3)
    specific = make_model("specific", encoder=encoder).train()
    assert specific.text_tokens.input_dropout.p == 0.3
    tokens, _ = specific.text_tokens(torch.ones(64, 8, dtype=torch.int64))
    assert 0.25 < (tokens == 0).float().mean().item() < 0.35
    assert (tokens[:, 0] == 0).any()  # AGG, too
    agnostic = make_model(encoder=encoder).train()
    assert agnostic.text_tokens.input_dropout.p == agnostic.video_tokens.position_dropout.p == 0.1
    assert not make_model().text_tokens.input_dropout.p


def test_droptoken_is_off_in_evaluation() -> None:
    model = make_model(drop_token=0.75).eval()
    batch = make_batch(model.config)
    torch.testing.assert_close(model.encode_video(batch.video), model.encode_video(batch.video))


def test_droptoken_keeps_each_rows_own_tokens_in_order() -> None:
    kept = draw_kept_tokens(8, 100, 0.5, torch.device("cpu"))
    assert kept.shape == (8, 50)
    assert bool((kept.diff(dim=1) > 0).all())
    assert len({tuple(row.tolist()) for row in kept}) == 8


def test_dropping_nothing_but_in_training_mode_equals_evaluation() -> None:
    model = make_model(drop_token=0.0)
    batch = make_batch(model.config)
    train = model.train().encode_audio(batch.audio)
    torch.testing.assert_close(train, model.eval().encode_audio(batch.audio))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_padding_does_not_change_a_caption(arrangement: str) -> None:
    model = make_model(arrangement).eval()
    caption = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    alone, together = model.encode_text(caption), model.encode_text(padded)[:1]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_video_patches_hold_neighbouring_pixels_and_count_time_first() -> None:
    video = torch.arange(2 * 4 * 4 * 3).reshape(1, 2, 4, 4, 3)
    patches = patch_video(video, (1, 2, 2))
    assert patches.shape == (1, 8, 12)
    torch.testing.assert_close(patches[0, 0], video[0, 0, :2, :2].flatten())
    torch.testing.assert_close(patches[0, 1], video[0, 0, :2, 2:].flatten())
    torch.testing.assert_close(patches[0, 4], video[0, 1, :2, :2].flatten())


def test_patching_equals_the_strided_convolution_of_the_paper() -> None:
    model = make_model()
    projection = model.video_tokens.patch_projection
    video = torch.rand(2, 4, 32, 32, 3) * 2 - 1
    convolution = nn.Conv3d(3, projection.out_features, (2, 8, 8), stride=(2, 8, 8))
    with torch.no_grad():
        kernel = projection.weight.unflatten(1, (2, 8, 8, 3)).permute(0, 4, 1, 2, 3)
        convolution.weight.copy_(kernel)
        convolution.bias.copy_(projection.bias)
    expected = convolution(video.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)
    actual = projection(patch_video(video, (2, 8, 8)))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_bytes_and_normalised_pixels_give_the_same_features() -> None:
    model = make_model().eval()
    video = make_batch(model.config).video
    as_float = video.float() / 127.5 - 1
    torch.testing.assert_close(
        model.encode_video(video), model.encode_video(as_float), atol=1e-5, rtol=1e-5
    )


def test_input_scale_multiplies_the_waveform() -> None:
    model = make_model().eval()
    louder = dataclasses.replace(model.config.audio, input_scale=3.0)
    scaled = make_model(audio=louder).eval()
    audio = make_batch(model.config).audio / 3
    torch.testing.assert_close(scaled.encode_audio(audio), model.encode_audio(3 * audio))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_agg_attention_lies_on_the_token_grid_and_sums_below_one(arrangement: str) -> None:
    model = make_model(arrangement).eval()
    attention = model.agg_attention(make_batch(model.config).video)
    assert attention.shape == (ROWS, *model.config.video.grid)
    total = attention.sum(dim=(1, 2, 3))
    assert bool((attention > 0).all())
    assert bool((total < 1).all())


def test_agg_attention_refuses_a_model_in_training() -> None:
    model = make_model().train()
    with pytest.raises(RuntimeError, match="eval"):
        model.agg_attention(make_batch(model.config).video)


@pytest.mark.parametrize(
    ("modality", "value", "message"),
    [
        (
            "video",
            torch.zeros(1, 4, 32, 30, 3),
            r"multiples of the patch \(2, 8, 8\), got float32 \[1, 4, 32, 30, 3\]",
        ),
        ("audio", torch.zeros(1, 100), r"S a multiple of the patch 128, got float32 \[1, 100\]"),
        ("text", torch.zeros(1, 17, dtype=torch.int64).fill_(3), "text must be"),
        ("text", torch.tensor([[300]]), "text id 300 is outside the vocabulary of 256"),
    ],
)
def test_inputs_of_another_geometry_are_refused(
    modality: str, value: torch.Tensor, message: str
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        getattr(model, f"encode_{modality}")(value)


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3), torch.ones(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)]
)
def test_batch_refuses_masks_that_are_no_bool_per_caption(mask: torch.Tensor) -> None:
    text = torch.ones(2, 3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"batch.text_mask must be bool \[2, 3\]"):
        Batch(text=text, text_mask=mask)


def test_batch_refuses_parts_with_different_rows() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        Batch(audio=torch.zeros(2, 8), text=torch.ones(3, 1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="same number of rows"):
        Batch(audio=torch.zeros(2, 8), seeds=torch.arange(3))


def test_facts_of_a_batch_are_those_of_its_masks_and_captions_wherever_it_goes() -> None:
    batch = make_batch(preset("tiny"))
    text, audio_mask = batch.text.clone(), torch.tensor([True, False, True, True])
    text[..., 12:], text[1], text[3, 2] = 0, 0, 0
    text[2, 0, 3] = 0  # padding between words
    batch = dataclasses.replace(batch, text=text, text_mask=None, audio_mask=audio_mask)
    facts = batch.facts
    assert [facts.num_rows(name) for name in ("video", "audio", "text")] == [4, 3, 8]
    assert (facts.coverage("audio"), facts.coverage("text")) == (0.75, 0.75)
    assert (facts.longest_caption, facts.has_padding) == (12, True)
    assert (min(facts.lowest_id), max(facts.highest_id)) == (0, int(text.max()))
    on_device = batch.to("meta")  # where there is nothing to read
    assert on_device.facts == on_device.with_inputs(video=None).facts == facts
    assert pickle.loads(pickle.dumps(batch)).facts == facts
    parts = MicroBatches.split(on_device, 3)
    assert parts.facts == facts
    assert [part.facts.num_rows("audio") for part in parts.parts] == [2, 1]
    alike = Batch(text=text[:1, :1, :5])
    assert (alike.facts.longest_caption, alike.facts.has_padding) == (5, False)
    nothing = Batch(text=torch.zeros(2, 0, 4, dtype=torch.int64)).facts
    assert (nothing.num_rows("text"), nothing.longest_caption) == (0, 1)


def test_batch_moves_its_seeds_and_refuses_seeds_that_are_no_number_per_clip() -> None:
    seeds = torch.tensor([5, 2**63 - 1])
    assert torch.equal(Batch(audio=torch.zeros(2, 8), seeds=seeds).to("cpu").seeds, seeds)
    assert Batch(audio=torch.zeros(2, 8), seeds=seeds).to("meta").seeds.is_meta
    for wrong in (seeds.float(), seeds[:, None]):
        with pytest.raises(ValueError, match=r"batch.seeds must be int64 \[B\]"):
            Batch(audio=torch.zeros(2, 8), seeds=wrong)
    with pytest.raises(ValueError, match="at least one modality"):
        Batch(seeds=seeds)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VATTConfig(arrangement="agnositc"), "model.arrangement must be one of 'agnostic'"),
        (lambda: HeadConfig(batch_norm="some"), "head.batch_norm must be one of"),
        (lambda: VideoConfig(frame_rate=0), "video.frame_rate must be positive, got 0"),
        (lambda: AudioConfig(num_samples=0), "audio.num_samples must be positive"),
        (lambda: AudioConfig(num_samples=100, patch_size=64), "must be a multiple of"),
        (lambda: TextConfig(relative_buckets=2), "relative_buckets >= 4"),
        (lambda: VATTConfig(video_encoder=TINY), "agnostic arrangement has one encoder"),
        (lambda: VATTConfig(drop_token=1.0), r"drop_token must be in \[0, 1\)"),
    ],
)
def test_configurations_that_make_no_model_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["ma-medium", "mbs", "tiny"])
def test_config_survives_a_trip_through_plain_containers(name: str) -> None:
    config = preset(name)
    assert VATTConfig.from_dict(config.to_dict()) == config


def test_config_refuses_unknown_keys_and_later_formats() -> None:
    with pytest.raises(ValueError, match="unknown keys.*'widht'"):
        VATTConfig.from_dict({"encoder": {"widht": 3}})
    with pytest.raises(ValueError, match="format_version 99"):
        VATTConfig.from_dict({"format_version": 99})


def test_preset_names_the_ones_there_are() -> None:
    with pytest.raises(ValueError, match="no preset 'ma-huge'; there are ma-base"):
        preset("ma-huge")


# FACTS 1, [C]: 182,653,696 for the agnostic Medium, 213,540,652 for BBS, buffers included.
@pytest.mark.parametrize(("name", "count"), [("ma-medium", 182_653_696), ("bbs", 213_540_652)])
def test_published_sizes_have_the_official_number_of_weights(name: str, count: int) -> None:
    with torch.device("meta"):
        model = VATT(preset(name))
    assert sum(value.numel() for value in model.state_dict().values()) == count


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_blocks_add_to_float32_under_autocast(arrangement: str) -> None:
    model, kinds = make_model(arrangement), set()
    for encoder in model.encoders.values():
        if isinstance(encoder, Encoder):
            for block in encoder.blocks:
                block.register_forward_hook(lambda _, __, out: kinds.add(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(make_batch(model.config))
    assert kinds == {torch.float32}
