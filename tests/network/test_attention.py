"""Attention that is asked for, and work that is not done; counted, not timed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vatt.batch import Batch
from vatt.config.geometry import TextConfig, VideoConfig
from vatt.config.model import EncoderConfig, HeadConfig, VATTConfig
from vatt.config.presets import TINY, as_classifier, preset
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.flops import count_flops
from vatt.network.layers import AttentionLayer, Encoder
from vatt.network.model import VATT

ROWS, CANDIDATES, HEADS = 3, 2, TINY.num_heads
AUDIO_MASK = torch.tensor([True, False, True])
ARRANGEMENTS = ("agnostic", "specific")
LAYERS: tuple[AttentionLayer, ...] = (0, -1, "rollout")


def model_of(arrangement: str = "agnostic", **changes: Any) -> VATT:
    """8 tokens of video, 50 of sound."""
    torch.manual_seed(0)
    config = replace(
        preset("tiny"),
        arrangement=arrangement,
        video=VideoConfig(num_frames=4, image_size=16, patch_size=(2, 8, 8)),
        text=TextConfig(vocab_size=50, d_embedding=12, max_words=6),
        head=HeadConfig(d_va=24, d_vt=12),
    )
    return VATT(replace(config, **changes)).eval()


def ragged_batch(config: VATTConfig) -> Batch:
    """A clip without sound, one without words, captions of five, three and four words."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(1, 50, (ROWS, CANDIDATES, 6), generator=generator)
    text[..., 5:], text[0, 1, 3:], text[1, 0, 4:], text[2] = 0, 0, 0, 0
    return Batch(
        video=torch.rand(ROWS, 4, 16, 16, 3, generator=generator) * 2 - 1,
        audio=torch.rand(ROWS, config.audio.num_samples, generator=generator) * 2 - 1,
        text=text,
        audio_mask=AUDIO_MASK,
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_attention_has_one_distribution_for_each_token_that_is_there(
    arrangement: str, layer: AttentionLayer
) -> None:
    model = model_of(arrangement)
    batch = ragged_batch(model.config)
    attention = model(batch, return_attention=True, attention_layer=layer).attention
    heads = 1 if layer == "rollout" else HEADS
    assert {name: tuple(value.shape) for name, value in attention.items()} == {
        "video": (ROWS, heads, 9, 9),
        "audio": (ROWS, heads, 51, 51),
        "text": (ROWS, CANDIDATES, heads, 6, 6),  # AGG and the five words of the longest
    }
    for name, value in attention.items():
        present = getattr(batch, f"{name}_mask")
        torch.testing.assert_close(
            value[present].sum(dim=-1), torch.ones_like(value[present])[..., 0]
        )
        assert not value[~present].any()
        assert bool((value >= 0).all())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_no_word_attends_to_padding(arrangement: str, layer: AttentionLayer) -> None:
    model = model_of(arrangement)
    batch = ragged_batch(model.config)
    attention = model(batch, return_attention=True, attention_layer=layer).attention["text"]
    three_words = attention[0, 1]
    assert not three_words[:, :4, 4:].any()
    assert bool((attention[0, 0] > 0).all())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_asking_for_attention_changes_no_embedding(arrangement: str, layer: AttentionLayer) -> None:
    model = model_of(arrangement)
    batch = ragged_batch(model.config)
    plain, asked = model(batch), model(batch, return_attention=True, attention_layer=layer)
    assert plain.attention == {}
    for name, value in plain.embeddings.items():
        # with its weights, attention sums in another order: up to 1.4e-6 off, more on other CPUs
        torch.testing.assert_close(asked.embeddings[name], value, atol=1e-5, rtol=1e-5)


def test_rollout_is_the_product_of_the_blocks_with_half_the_residual_branch() -> None:
    model = model_of()
    batch = ragged_batch(model.config)
    first, second, rollout = (
        model(batch, return_attention=True, attention_layer=layer).attention["video"]
        for layer in LAYERS
    )
    steps = [(value.mean(dim=1, keepdim=True) + torch.eye(9)) / 2 for value in (first, second)]
    torch.testing.assert_close(rollout, steps[1] @ steps[0])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_agg_attention_is_the_agg_row_of_the_attention(
    arrangement: str, layer: AttentionLayer
) -> None:
    model = model_of(arrangement)
    batch = ragged_batch(model.config)
    attention = model(batch, return_attention=True, attention_layer=layer).attention["video"]
    expected = attention[:, :, 0, 1:].mean(dim=1).reshape(ROWS, 2, 2, 2)
    torch.testing.assert_close(model.agg_attention(batch.video, layer), expected)
    wider = model.agg_attention(torch.rand(1, 6, 16, 32, 3), layer)
    assert wider.shape == (1, 3, 2, 4)


@pytest.mark.parametrize(("layer", "weights"), [(None, 0), (0, 1), (-1, 1), ("rollout", 2)])
def test_attention_weights_are_written_out_only_in_the_blocks_asked_for(
    seen: "SeenMasks", layer: AttentionLayer | None, weights: int
) -> None:
    model = model_of("specific")
    batch = ragged_batch(model.config)
    if layer is None:
        model(batch)
    else:
        model(batch, return_attention=True, attention_layer=layer)
    assert len(seen.masks) == (2 - weights) * 3  # towers of two blocks each


@pytest.mark.parametrize("layer", [2, -3, "last"])
def test_a_block_that_there_is_not_is_refused(layer: Any) -> None:
    model = model_of()
    message = rf"attention_layer must be in \[-2, 2\) or 'rollout', got {layer!r}"
    with pytest.raises(ValueError, match=message):
        model(ragged_batch(model.config), return_attention=True, attention_layer=layer)


def test_the_linear_text_tower_has_no_attention() -> None:
    text = TextConfig(tower="linear", vocab_size=50, d_embedding=12, max_words=6)
    model = model_of("specific", text=text)
    output = model(ragged_batch(model.config), return_attention=True)
    assert set(output.attention) == {"video", "audio"}


# Work ---------------------------------------------------------------------------------------------


def base_video(**changes: Any) -> VATT:
    """The full-size Base video tower, on a device where nothing is computed."""
    with torch.device("meta"):
        return VATT(replace(preset("bbs"), modalities=("video",), head=None, **changes))


def encoder_flops(config: EncoderConfig, num_tokens: int) -> int:
    """Two for each multiply-add of the projections, both attention products and the MLP."""
    width = config.num_heads * config.d_kv
    weights = 4 * config.d_model * width + 2 * config.d_model * config.d_ff
    return config.num_layers * (2 * num_tokens * weights + 4 * num_tokens**2 * width)


@pytest.mark.parametrize(("training", "num_kept"), [(True, 784), (False, 1568)])
def test_the_base_video_tower_costs_what_its_kept_tokens_cost(
    training: bool, num_kept: int
) -> None:
    model = base_video().train(training)
    config = model.config.tower("video")
    projected: list[tuple[int, ...]] = []
    model.video_tokens.patch_projection.register_forward_pre_hook(
        lambda _, inputs: projected.append(tuple(inputs[0].shape))
    )
    clip = torch.zeros(1, 32, 224, 224, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.encode_video(clip)
    assert projected == [(1, num_kept, 4 * 16 * 16 * 3)]
    patches = 2 * num_kept * 3072 * config.d_model
    assert counter.get_total_flops() == patches + encoder_flops(config, 1 + num_kept)


class SeenMasks:
    """`scaled_dot_product_attention` that notes the masks it is given."""

    def __init__(self) -> None:
        self.masks: list[Tensor | None] = []
        self.original = F.scaled_dot_product_attention

    def __call__(self, *args: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        self.masks.append(attn_mask)
        return self.original(*args, attn_mask=attn_mask, **kwargs)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> SeenMasks:
    seen = SeenMasks()
    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    return seen


@pytest.mark.parametrize("training", [True, False])
def test_the_base_video_tower_attends_without_a_mask(seen: SeenMasks, training: bool) -> None:
    clip = torch.zeros(1, 32, 224, 224, 3, dtype=torch.uint8, device="meta")
    base_video().train(training).encode_video(clip)
    assert seen.masks == [None] * 12


def test_only_padded_captions_have_a_mask(seen: SeenMasks) -> None:
    model = model_of()
    batch = ragged_batch(model.config)
    model(replace(batch, text=None, text_mask=None))
    model.encode_text(torch.ones(2, 4, dtype=torch.int64))
    model.encode_text(torch.tensor([[1, 2, 0], [3, 4, 0]]))  # cut, then nothing is padded
    assert seen.masks == [None] * 8
    seen.masks.clear()
    model.encode_text(torch.tensor([[1, 2, 0], [3, 4, 5]]))
    assert [None if mask is None else tuple(mask.shape) for mask in seen.masks] == [
        (2, 1, 4, 4)
    ] * 2


def test_captions_of_the_t5_tower_without_padding_have_the_relative_bias_only(
    seen: SeenMasks,
) -> None:
    model = model_of("specific")
    model.encode_text(torch.ones(2, 4, dtype=torch.int64))
    for bias in seen.masks:
        assert bias is not None
        assert tuple(bias.shape) == (1, HEADS, 5, 5)


def rows_encoded(model: VATT, batch: Batch) -> dict[str, list[tuple[int, ...]]]:
    """Rows and tokens that each encoder of a model is given."""
    given: dict[str, list[tuple[int, ...]]] = {name: [] for name in model.encoders}
    handles = [
        encoder.register_forward_pre_hook(
            lambda _, inputs, name=name: given[name].append(tuple(inputs[0].shape[:2]))
        )
        for name, encoder in model.encoders.items()
    ]
    model(batch)
    for handle in handles:
        handle.remove()
    return given


def test_towers_are_given_present_rows_and_captions_with_words_only() -> None:
    model = model_of("specific")
    batch = ragged_batch(model.config)
    given = rows_encoded(model, batch)
    assert given == {"video": [(3, 9)], "audio": [(2, 51)], "text": [(4, 6)]}
    silent = replace(batch, audio_mask=torch.zeros(ROWS, dtype=torch.bool))
    assert rows_encoded(model, silent)["audio"] == []
    wordless = replace(batch, text=torch.zeros_like(batch.text), text_mask=None)
    given = rows_encoded(model, wordless)
    assert (given["text"], given["video"]) == ([], [(3, 9)])


def test_a_batch_of_audio_alone_calls_no_other_tower() -> None:
    model = model_of("specific")
    audio = ragged_batch(model.config).audio
    given = rows_encoded(model, Batch(audio=audio))
    assert given == {"video": [], "audio": [(3, 51)], "text": []}


class HostWaits(TorchDispatchMode):
    """Counts the operators for which the host would wait for a device."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.split(".")[-1]
        indexes = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITING or indexes:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("form", ["asymmetric", "sigmoid"])
def test_the_host_does_not_wait_for_the_device_in_a_training_step(
    arrangement: str, form: str
) -> None:
    model = model_of(arrangement, drop_token=0.5).train()
    loss = ContrastiveLoss(LossConfig(form=form))
    with HostWaits() as asked:
        bool(torch.ones(2).any())
        torch.ones(2)[torch.tensor([True, False])]
    assert asked.names == ["_local_scalar_dense", "index"]
    batch = ragged_batch(model.config)
    with HostWaits() as waits:
        total = loss(model(batch), batch).total
    assert waits.names == []
    total.backward()


def test_a_classifier_has_one_tower() -> None:
    config = as_classifier(model_of("specific").config, "audio", 4)
    model = VATT(config)
    assert [name for name, module in model.named_modules() if isinstance(module, Encoder)] == [
        "encoders.audio"
    ]
    assert model.head is None


@pytest.mark.slow
def test_the_whole_base_model_does_on_the_cpu_what_is_counted() -> None:
    config = preset("ma-base")
    config = replace(config, encoder=replace(config.encoder, dropout=0.0))
    model = VATT(config).train()
    batch = Batch(
        video=torch.zeros(1, 32, 224, 224, 3, dtype=torch.uint8),
        audio=torch.zeros(1, 153_600),
        text=torch.ones(1, 1, 16, dtype=torch.int64),
    )
    # torch's counter does not know the fused attention of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(batch)
    assert counter.get_total_flops() == count_flops(config, num_captions=1).total
    assert output.embeddings["text_vt"].shape == (1, 1, 256)
