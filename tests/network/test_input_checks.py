"""What a model takes: other grids than its own by interpolation, and what it refuses."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vatt.config.geometry import AudioConfig, SpectrogramConfig, TextConfig, VideoConfig
from vatt.config.model import ClassifierConfig, EncoderConfig, HeadConfig, VATTConfig
from vatt.config.presets import TINY, as_classifier
from vatt.network.model import VATT
from vatt.network.tokens import Positions, interpolation_matrix, patch_spectrogram

REFERENCE = Path(__file__).parents[1] / "packs" / "interp" / "interp.npz"
MEL = SpectrogramConfig(
    window_samples=256, hop_samples=128, num_mels=20, max_hertz=3600.0, patch_size=(8, 5)
)
SOUND = AudioConfig(sample_rate=8_000, num_samples=6_400, patch_size=128)
SPECTROGRAM = replace(SOUND, spectrogram=MEL)


def model_of(audio: AudioConfig = SOUND, **changes: Any) -> VATT:
    """Video tokens on a grid of (2, 2, 2), sound on (50,) or (6, 4)."""
    torch.manual_seed(0)
    config = VATTConfig(
        video=VideoConfig(num_frames=4, image_size=16, patch_size=(2, 8, 8)),
        audio=audio,
        text=TextConfig(vocab_size=50, d_embedding=12, max_words=6),
        encoder=TINY,
        head=HeadConfig(d_va=24, d_vt=12),
        d_post=28,
    )
    return VATT(replace(config, **changes))


# The system of 1200 knots has the condition number 1.2e12. Times float64's unit roundoff, 1.1e-16,
# this is 1.3e-4; three builds of LAPACK were 2e-6 to 1.3e-5 off.
@pytest.mark.parametrize(
    ("length", "bound"), [(1, 1e-5), (2, 1e-5), (3, 1e-5), (14, 1e-5), (1200, 1.3e-4)]
)
def test_a_table_read_at_its_own_length_stays_itself(length: int, bound: float) -> None:
    matrix = interpolation_matrix(length, length)
    torch.testing.assert_close(matrix, torch.eye(length), atol=bound, rtol=0)


@pytest.mark.parametrize(("num_from", "num_to"), [(2, 5), (4, 8), (4, 6), (14, 20), (20, 14)])
def test_interpolation_is_exact_on_lines_and_where_the_grids_share_points(
    num_from: int, num_to: int
) -> None:
    matrix = interpolation_matrix(num_from, num_to)
    line = 3 * torch.arange(num_from) / num_from - 1
    expected = 3 * torch.arange(num_to) / num_to - 1  # beyond the last knot, too
    torch.testing.assert_close(matrix @ line, expected, atol=1e-5, rtol=0)
    shared = [(i, j) for i in range(num_from) for j in range(num_to) if i * num_to == j * num_from]
    assert (0, 0) in shared
    for i, j in shared:
        torch.testing.assert_close(matrix[j], torch.eye(num_from)[i], atol=1e-5, rtol=0)


def test_a_table_of_one_entry_is_repeated() -> None:
    torch.testing.assert_close(interpolation_matrix(1, 4), torch.ones(4, 1))


@pytest.mark.parametrize("length", [4, 5, 12, 16])
def test_interpolated_tables_equal_the_official_ones(length: int) -> None:
    with np.load(REFERENCE) as arrays:
        table = torch.from_numpy(arrays["restore_interpolate_pos/in"])
        expected = arrays[f"restore_interpolate_pos/out_{length}"]
    actual = (interpolation_matrix(len(table), length) @ table).numpy()
    # The official ones were solved in float32: of 8 entries read at 4 places, all of them knots,
    # they are 1.6e-5 off the table itself.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5 * np.abs(expected).max())


def test_each_axis_of_the_positions_is_interpolated_by_itself() -> None:
    torch.manual_seed(0)
    positions = Positions((2, 3), 8)
    own, finer = positions().reshape(2, 3, 8), positions((4, 9)).reshape(4, 9, 8)
    torch.testing.assert_close(finer[::2, ::3], own, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(finer[1, 1], own[0, 0], atol=1e-3)
    first, second = positions.tables
    torch.testing.assert_close(own[1, 2], positions.norm(first[1] + second[2]))


@pytest.mark.parametrize(
    "context", [torch.inference_mode(), torch.device("meta")], ids=["inference", "meta"]
)
def test_positions_may_be_first_interpolated_anywhere_and_then_learn(context: Any) -> None:
    interpolation_matrix.cache_clear()
    positions = Positions((3,), 8)
    try:
        with context:
            interpolation_matrix(3, 7)
        positions((7,)).square().sum().backward()
        assert all(float(part.grad.abs().sum()) > 0 for part in positions.parameters())
    finally:
        interpolation_matrix.cache_clear()


def test_transposed_positions_are_the_plain_ones_with_the_axes_of_the_grid_exchanged() -> None:
    torch.manual_seed(0)
    plain, transposed = Positions((6, 4), 8), Positions((6, 4), 8, transposed=True)
    transposed.load_state_dict(plain.state_dict())
    for grid in (None, (9, 5)):
        time, mel = grid or (6, 4)
        expected = plain(grid).reshape(time, mel, 8).transpose(0, 1).flatten(0, 1)
        torch.testing.assert_close(transposed(grid), expected)


def test_a_configuration_can_ask_for_transposed_positions() -> None:
    plain = model_of(SPECTROGRAM).eval()
    changed = replace(SPECTROGRAM, spectrogram=replace(MEL, transposed_positions=True))
    transposed = model_of(changed).eval()
    transposed.load_state_dict(plain.state_dict())
    audio = torch.rand(1, 6_400)
    assert not torch.allclose(plain.encode_audio(audio), transposed.encode_audio(audio), atol=1e-4)


@pytest.mark.parametrize(
    ("audio", "modality", "raw", "grid"),
    [
        (SOUND, "video", torch.rand(1, 4, 16, 16, 3), (2, 2, 2)),
        (SOUND, "video", torch.rand(1, 10, 16, 16, 3), (5, 2, 2)),
        (SOUND, "video", torch.rand(1, 2, 40, 24, 3), (1, 5, 3)),
        (SOUND, "audio", torch.rand(1, 12_800), (100,)),
        (SPECTROGRAM, "audio", torch.rand(1, 6_400), (6, 4)),
        (SPECTROGRAM, "audio", torch.rand(1, 127 * 128 + 1), (16, 4)),
        (SPECTROGRAM, "audio", torch.rand(1, 17, 31), (2, 6)),
    ],
)
def test_a_clip_of_another_geometry_has_the_tokens_of_its_own_grid(
    audio: AudioConfig, modality: str, raw: Tensor, grid: tuple[int, ...]
) -> None:
    model = model_of(audio).eval()
    tokens = model.tokens_of(modality)
    assert tokens.grid_of(raw) == grid
    assert model.encode_tokens(modality, raw).shape == (1, 1 + np.prod(grid), 28)
    assert tuple(len(table) for table in tokens.positions.tables) == tokens.geometry.grid
    model.train().encode_tokens(modality, raw)[:, 0].sum().backward()
    assert all(bool(table.grad.any()) for table in tokens.positions.tables)


def test_droptoken_counts_the_tokens_of_the_clip_and_not_of_the_tables() -> None:
    model = model_of(drop_token=0.5).train()
    assert model.encode_tokens("audio", torch.rand(1, 12_800)).shape[1] == 1 + 50


def test_what_fills_no_patch_of_a_spectrogram_is_left_out() -> None:
    mel = torch.arange(9 * 7).reshape(1, 9, 7)
    patches = patch_spectrogram(mel, (4, 3))
    assert patches.shape == (1, 4, 12)
    torch.testing.assert_close(patches[0, 1], mel[0, :4, 3:6].flatten())
    torch.testing.assert_close(patches[0, 2], mel[0, 4:8, :3].flatten())


def test_fewer_positions_than_tokens_are_interpolated_from_the_start() -> None:
    video = VideoConfig(num_frames=8, image_size=16, patch_size=(2, 8, 8), position_grid=(2, 2, 2))
    model = model_of(video=video)
    assert [len(table) for table in model.video_tokens.positions.tables] == [2, 2, 2]
    assert model.encode_tokens("video", torch.rand(1, 8, 16, 16, 3)).shape[1] == 1 + 4 * 2 * 2 // 2


INT32 = {"dtype": torch.int32}


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("video", torch.zeros(4, 16, 16, 3), r"\[B, T, H, W, 3\], got float32 \[4, 16, 16, 3\]"),
        ("video", torch.zeros(1, 4, 16, 16, 1), r"got float32 \[1, 4, 16, 16, 1\]"),
        ("video", torch.zeros(1, 3, 4, 16, 16), r"got float32 \[1, 3, 4, 16, 16\]"),
        ("video", torch.zeros(1, 4, 16, 16, 3, **INT32), r"uint8 or float .* got int32"),
        ("video", torch.zeros(1, 3, 16, 16, 3), r"multiples of the patch \(2, 8, 8\), got"),
        ("video", torch.zeros(1, 4, 12, 16, 3), r"got float32 \[1, 4, 12, 16, 3\]"),
        ("video", torch.zeros(1, 0, 16, 16, 3), r"multiples .* got float32 \[1, 0, 16, 16, 3\]"),
        ("image", torch.zeros(1, 16, 12, 3), r"\(2, 8, 8\), got float32 \[1, 2, 16, 12, 3\]"),
        ("image", torch.zeros(1, 16, 16, 4), r"\[B, H, W, 3\], got float32"),
        pytest.param(
            *("image", torch.zeros(16, 16, 3), r"\[B, H, W, 3\], got float32 \[16, 16, 3\]"),
        ),
        ("audio", torch.zeros(6_400), r"float \[B, S\] .* got float32 \[6400\]"),
        ("audio", torch.zeros(1, 1, 6_400), r"got float32 \[1, 1, 6400\]"),
        ("audio", torch.zeros(1, 6_400, **INT32), r"got int32 \[1, 6400\]"),
        ("audio", torch.zeros(1, 0), r"multiple of the patch 128, got float32 \[1, 0\]"),
        ("text", torch.ones(3, dtype=torch.int64), r"int64 \[B, J ≤ 6\], got int64 \[3\]"),
        ("text", torch.ones(1, 2, 3, dtype=torch.int64), r"got int64 \[1, 2, 3\]"),
        ("text", torch.ones(1, 3, **INT32), r"text must be int64 .* got int32 \[1, 3\]"),
        ("text", torch.ones(1, 3), r"got float32 \[1, 3\]"),
        ("text", torch.ones(1, 7, dtype=torch.int64), r"J ≤ 6\], got int64 \[1, 7\]"),
        ("text", torch.tensor([[1, -1]]), r"text id -1 is outside the vocabulary of 50"),
        ("text", torch.tensor([[1, 50]]), r"text id 50 is outside the vocabulary of 50"),
    ],
)
def test_a_wrong_input_is_refused_with_what_was_expected_and_given(
    method: str, value: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(model_of(), f"encode_{method}")(value)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.zeros(1, 7 * 128), r"float32 \[1, 896\]"),
        (torch.zeros(1, 7, 20), r"float32 \[1, 7, 20\]"),
        (torch.zeros(1, 8, 4), r"float32 \[1, 8, 4\]"),
        (torch.zeros(6_400), r"float32 \[6400\]"),
        (torch.zeros(1, 1, 8, 20), r"float32 \[1, 1, 8, 20\]"),
        (torch.zeros(1, 6_400, **INT32), r"int32 \[1, 6400\]"),
    ],
)
def test_sound_too_short_or_strange_for_a_spectrogram_is_refused(value: Tensor, got: str) -> None:
    message = rf"waveform \[B, S >= 897\] or log-mel .* \[B, M >= 8, F >= 5\], got {got}"
    with pytest.raises(ValueError, match=message):
        model_of(SPECTROGRAM).encode_audio(value)


def test_the_shortest_sound_that_makes_one_patch_of_a_spectrogram_is_taken() -> None:
    model = model_of(SPECTROGRAM).eval()
    assert model.encode_tokens("audio", torch.rand(1, 897)).shape[1] == 1 + 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("method", "shape"),
    [("video", (1, 4, 16, 16, 3)), ("image", (1, 16, 16, 3)), ("audio", (1, 6_400))],
)
def test_floats_of_any_width_are_taken(
    method: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    encode = getattr(model_of().eval(), f"encode_{method}")
    value = (torch.rand(shape) * 2 - 1).to(dtype)
    torch.testing.assert_close(encode(value), encode(value.float()))


SCALES = {"0 to 255": (255.0, 0.0), "normalised by mean and deviation": (4.0, -2.0)}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("training", [False, True])
def test_float_video_outside_its_range_is_refused(
    scale: tuple[float, float], training: bool
) -> None:
    pixels = torch.linspace(0, 1, 2 * 4 * 16 * 16 * 3).reshape(2, 4, 16, 16, 3)
    model = model_of().train(training)
    for method, value in (("encode_video", pixels), ("encode_image", pixels[:, 0])):
        with pytest.raises(ValueError, match=r"must be in \[-1, 1\], got .*: give uint8 pictures"):
            getattr(model, method)(value * scale[0] + scale[1])
    model.embed_video(pixels * 2 - 1)
    model.encode_video((pixels * 2 - 1).bfloat16() * 1.004)  # as after interpolation


def test_float_video_in_0_to_1_is_warned_of_once_for_each_line() -> None:
    model = model_of().eval()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            model.encode_video(torch.rand(1, 4, 16, 16, 3))
        model.encode_video(torch.zeros(1, 4, 16, 16, 3))  # grey
    assert [one.filename for one in told] == [__file__]
    assert "got values in [0, 1] only: scale them, video * 2 - 1" in str(told[0].message)


def test_range_of_video_is_not_read_where_there_are_no_values() -> None:
    model = model_of().eval()
    bright = torch.rand(1, 4, 16, 16, 3) * 255
    torch.export.export(Encode(model), (bright,), strict=False)
    with torch.device("meta"):
        model_of().encode_video(torch.empty(1, 4, 16, 16, 3))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model.encode_video(mode.from_tensor(bright)).shape == (1, 28)


class Encode(torch.nn.Module):
    """`encode_video` as the forward method of a module."""

    def __init__(self, model: VATT) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        return self.model.encode_video(video)


@pytest.mark.parametrize("method", ["video", "audio", "spectrogram"])
def test_a_model_in_half_precision_takes_the_same_inputs(method: str) -> None:
    model = model_of(SPECTROGRAM if method == "spectrogram" else SOUND).eval().bfloat16()
    if method == "video":
        embeddings = model.embed_video(torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8))
    else:
        embeddings = model.embed_audio(torch.rand(1, 6_400))
    assert embeddings["va"].dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VATTConfig(modalities=("video", "video")), r"some of .*'text'., got"),
        (lambda: VATTConfig(modalities=("video", "smell")), r"got \('video', 'smell'\)"),
        (lambda: VATTConfig(modalities=()), r"got \(\)"),
        (
            lambda: VATTConfig(modalities=("audio", "text")),
            "a head needs video and another modality, the model has audio, text: set head to null",
        ),
        (lambda: VATTConfig(modalities=("video",)), "the model has video: set head to null"),
        (
            lambda: VATTConfig(
                modalities=("video",),
                head=None,
                classifier=ClassifierConfig(modality="audio", num_classes=3),
            ),
            "the classifier reads audio, the model has video",
        ),
        (
            lambda: VATTConfig(text=TextConfig(tower="linear")),
            "text.tower 'linear' needs the specific arrangement",
        ),
        (lambda: VATTConfig(audio_drop_token=1.0), r"audio_drop_token must be in \[0, 1\), got 1"),
        (lambda: VATTConfig(d_post=0), "model.d_post must be positive, got 0"),
        (
            lambda: VideoConfig(position_grid=(8, 14)),
            r"video.position_grid must be 3 positive sizes, got \(8, 14\)",
        ),
        (
            lambda: VideoConfig(position_grid=(8, 14, 0)),
            r"video.position_grid must be 3 positive sizes, got \(8, 14, 0\)",
        ),
        (
            lambda: AudioConfig(position_grid=(9, 16)),
            r"audio.position_grid must be 1 positive sizes, got \(9, 16\)",
        ),
        (
            lambda: AudioConfig(spectrogram=SpectrogramConfig(), position_grid=(1200,)),
            r"audio.position_grid must be 2 positive sizes, got \(1200,\)",
        ),
        (
            lambda: VideoConfig(num_frames=30),
            r"video.num_frames \(30\) must be a multiple of its patch size, got .*\(4, 16, 16\)",
        ),
        (lambda: VideoConfig(image_size=225), r"video.image_size \(225\) must be a multiple"),
        pytest.param(
            *(lambda: VideoConfig(patch_size=(4, 16)), r"patch_size must be .* got \(4, 16\)"),
        ),
        pytest.param(
            *(lambda: SpectrogramConfig(patch_size=(16,)), r"patch_size must be .* got \(16,\)"),
        ),
        (lambda: SpectrogramConfig(patch_size=(16, 81)), r"fit 80 mel bins, got \(16, 81\)"),
        (lambda: SpectrogramConfig(hop_samples=0), "audio.spectrogram.hop_samples must be pos"),
        (
            lambda: AudioConfig(num_samples=8_000, spectrogram=SpectrogramConfig()),
            r"audio.num_samples \(8000\) do not fill one patch",
        ),
        (lambda: TextConfig(tower="bert"), "text.tower must be one of 't5', 'linear', got 'bert'"),
        (lambda: TextConfig(vocab_size=1), "text.vocab_size must be at least 2, got 1"),
        (lambda: EncoderConfig(dropout=1.0), r"encoder.dropout must be in \[0, 1\), got 1.0"),
        (lambda: EncoderConfig(num_heads=0), "encoder.num_heads must be positive, got 0"),
        (lambda: HeadConfig(kind="both"), "head.kind must be one of 'fac', 'joint', got 'both'"),
        (lambda: HeadConfig(audio_layers=3), "head.audio_layers must be one of 1, 2, got 3"),
        (lambda: ClassifierConfig(num_classes=1), "num_classes >= 2 .* got 1 and 0.5"),
        (lambda: ClassifierConfig(num_classes=9, dropout=1.0), "got 9 and 1.0"),
        (lambda: as_classifier(VATTConfig(), "smell", 5), "not on 'smell'"),
        (
            lambda: EncoderConfig(num_layers=10**6),
            "encoder.num_layers must be at most 256, got 1,000,000",
        ),
        (lambda: EncoderConfig(d_model=10**9), "encoder.d_model must be at most 16,777,216"),
        (lambda: EncoderConfig(num_heads=10**6, d_kv=10**6), "encoder.num_heads · encoder.d_kv"),
        (lambda: TextConfig(vocab_size=10**12), "text.vocab_size must be at most 16,777,216"),
        (
            lambda: TextConfig(relative_buckets=10**9, relative_max_distance=10**10),
            "text.relative_buckets must be at most",
        ),
        (lambda: TextConfig(max_words=10**6), "text.max_words must be at most 8,192"),
        (lambda: HeadConfig(d_va=10**9), "head.d_va must be at most"),
        (lambda: ClassifierConfig(num_classes=10**9), "classifier.num_classes must be at most"),
        (lambda: VideoConfig(position_grid=(10**9, 1, 1)), "video.position_grid must be at most"),
        (
            lambda: VideoConfig(num_frames=1_000, image_size=512, patch_size=(1, 8, 8)),
            "tokens of a clip of video must be at most 131,072, got 4,096,000",
        ),
        (
            lambda: VideoConfig(num_frames=4096, image_size=4096, patch_size=(4096, 4096, 4096)),
            "values in video.patch_size must be at most",
        ),
        (
            lambda: AudioConfig(num_samples=10**7, patch_size=1),
            "tokens of a clip of audio must be at most 131,072, got 10,000,000",
        ),
        (lambda: SpectrogramConfig(window_samples=10**6), "window_samples must be at most 65,536"),
        (lambda: SpectrogramConfig(num_mels=10**5), "num_mels must be at most 1,024"),
        (
            lambda: SpectrogramConfig(patch_size=(1 << 20, 80)),
            "values in audio.spectrogram.patch_size must be at most",
        ),
        (
            lambda: interpolation_matrix(20_000, 3),
            "a table of 20,000 positions cannot be interpolated, at most 16,384 can",
        ),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()
