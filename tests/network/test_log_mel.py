"""The log-mel front end, resampling, and torchaudio with and without its compiled part."""

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vatt.network.log_mel import LogMel, mel_filter_bank, num_spectrogram_frames
from vatt.network.torchaudio_loading import load_torchaudio

REFERENCE = Path(__file__).parents[1] / "packs/mel/mel.npz"  # of the release's preprocessing
RELEASE = {"sample_rate": 48_000}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE) as arrays:
        return {name.removeprefix("mel/"): torch.from_numpy(arrays[name]) for name in arrays}


def tone(hertz: float, sample_rate: int, num_samples: int) -> Tensor:
    """float32 [S] of a sine at half of full scale."""
    time = torch.arange(num_samples, dtype=torch.float64) / sample_rate
    return (0.5 * torch.sin(2 * math.pi * hertz * time)).float()


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


WAVEFORM = noise(1, 3000)

# the release's spectrogram


def test_log_mel_and_its_stretch_are_those_of_the_release(reference: dict[str, Tensor]) -> None:
    module, waveform_BS = LogMel(**RELEASE), reference["wav"][None]
    for ours, name in (
        (module.log_mel(waveform_BS), "log_mel"),
        (module(waveform_BS), "normalized"),
    ):
        expected = reference[name][..., 0]
        assert ours.shape == (1, 150, 80)
        assert ours.dtype == torch.float32
        assert (ours[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_filter_bank_of_torchaudio_misses_the_release(reference: dict[str, Tensor]) -> None:
    windows = torch.nn.functional.pad(reference["wav"], (0, 1024)).unfold(0, 2048, 1024)
    magnitude = torch.fft.rfft(windows * torch.hann_window(2048)).abs()
    theirs = load_torchaudio().functional.melscale_fbanks(1025, 80.0, 7600.0, 80, 48_000)
    expected = reference["log_mel"][..., 0]
    error = (torch.log1p(1e4 * magnitude @ theirs) - expected).abs().max() / expected.max()
    assert error > 1e-4  # its triangles have the same edges, but are linear in Hz


def test_triangles_are_linear_in_mel_peak_at_one_and_leave_out_zero() -> None:
    bank_QF = mel_filter_bank(
        num_frequencies=100_001, num_mels=3, sample_rate=16_000, min_hertz=0, max_hertz=8000
    ).double()
    mel = 1127 * torch.log1p(torch.linspace(0, 8000, 100_001, dtype=torch.float64) / 700)
    position = mel / mel[-1] * 4  # edges at 0, 1, 2, 3 and 4
    for bin_index in range(3):
        expected = (1 - (position - (bin_index + 1)).abs()).clamp(min=0)
        assert (bank_QF[:, bin_index] - expected).abs().max() < 1e-6
    assert not bank_QF[0].any()


@pytest.mark.parametrize("hertz", [200, 1000, 5000])
def test_tone_peaks_in_the_bin_that_holds_it(hertz: int) -> None:
    log_mel_MF = LogMel(**RELEASE)(tone(hertz, 48_000, 48_000)[None])[0]
    low, high, wanted = (1127 * math.log1p(f / 700) for f in (80, 7600, hertz))
    nearest = round((wanted - low) / (high - low) * 81) - 1
    assert log_mel_MF[:-1].argmax(dim=1).eq(nearest).all()


# frames


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [(1, 1), (1023, 1), (1024, 1), (1025, 2), (2048, 2), (153_599, 150), (153_600, 150)],
)
def test_every_hop_begun_is_a_frame(num_samples: int, expected: int) -> None:
    assert num_spectrogram_frames(num_samples, 1024) == expected
    assert LogMel(**RELEASE)(noise(1, num_samples)).shape == (1, expected, 80)


@pytest.mark.parametrize(("window", "hop"), [(1500, 700), (400, 160), (512, 700), (401, 401)])
def test_any_window_begins_where_its_frame_begins(window: int, hop: int) -> None:
    bands = {"sample_rate": 16_000, "num_mels": 20, "min_hertz": 80, "max_hertz": 8000}
    length = 1 << (window - 1).bit_length()
    bank = mel_filter_bank(num_frequencies=length // 2 + 1, **bands)
    waveform = noise(5000)
    frames = []
    for begin in range(0, 5000, hop):
        piece = waveform[begin : begin + window]
        piece = torch.nn.functional.pad(piece, (0, window - len(piece)))
        magnitude = torch.fft.rfft(piece * torch.hann_window(window), n=length).abs()
        frames.append(torch.log1p(1e4 * magnitude @ bank))
    module = LogMel(window_samples=window, hop_samples=hop, **bands)
    torch.testing.assert_close(module.log_mel(waveform[None])[0], torch.stack(frames))


# the stretch to [0, 1]


def test_each_clip_is_stretched_to_zero_and_one_by_itself() -> None:
    out = LogMel(**RELEASE)(noise(3, 5000) * torch.tensor([[1.0], [0.01], [1e-6]]))
    assert out.amin(dim=(1, 2)).tolist() == [0, 0, 0]
    assert out.amax(dim=(1, 2)).tolist() == [1, 1, 1]


def test_silence_is_zero_before_and_after_the_stretch() -> None:
    module, silence = LogMel(**RELEASE), torch.zeros(2, 4000)
    assert not module.log_mel(silence).any()
    assert not module(silence).any()


def test_spectrogram_with_one_value_everywhere_is_zero() -> None:
    module = LogMel(**RELEASE, num_mels=1)
    assert module.log_mel(WAVEFORM[:, :1000]).gt(1).all()
    assert module(WAVEFORM[:, :1000]).tolist() == [[[0.0]]]


def test_batch_is_its_clips_one_by_one() -> None:
    module, waveform_BS = LogMel(**RELEASE), noise(3, 5000)
    waveform_BS[1] = 0
    one_by_one = torch.cat([module(clip[None]) for clip in waveform_BS])
    torch.testing.assert_close(module(waveform_BS), one_by_one)


# precision, gradients, devices, state


def test_autocast_changes_nothing() -> None:
    module, waveform_BS = LogMel(**RELEASE), noise(2, 5000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(waveform_BS)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(waveform_BS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_waveforms_of_any_floating_dtype_are_computed_in_float32(dtype: torch.dtype) -> None:
    module = LogMel(**RELEASE).to(dtype)  # a cast of the whole model must not reach the tables
    waveform_BS = noise(1, 3000).to(dtype)
    assert torch.equal(module(waveform_BS), module(waveform_BS.float()))


def test_gradient_reaches_every_sample_and_is_finite_in_silence() -> None:
    waveform_BS = noise(2, 4096)
    waveform_BS[1] = 0
    waveform_BS.requires_grad_()
    (LogMel(**RELEASE)(waveform_BS) ** 2).sum().backward()
    assert waveform_BS.grad is not None
    assert waveform_BS.grad.isfinite().all()
    assert waveform_BS.grad[0, 1:].ne(0).all()  # the window is 0 at its first sample


# sizes of their own: tables are kept, and another test must not have made them before


def test_module_made_and_used_in_inference_mode_can_train() -> None:
    with torch.inference_mode():
        module = LogMel(sample_rate=47_000, hop_samples=900)
        module(WAVEFORM)
    waveform_BS = noise(1, 3000).requires_grad_()
    module(waveform_BS).sum().backward()
    assert waveform_BS.grad is not None


def test_module_from_the_meta_device_computes_the_same() -> None:
    with torch.device("meta"):
        module = LogMel(sample_rate=46_000, window_samples=1800)
        out = module.to_empty(device="cpu")(WAVEFORM)
    assert out.max() == 1
    assert torch.equal(out, LogMel(sample_rate=46_000, window_samples=1800)(WAVEFORM))


def test_module_holds_no_weights_and_nothing_in_its_state() -> None:
    module = LogMel(**RELEASE)
    out = module(WAVEFORM)
    assert not list(module.parameters())
    assert not list(module.buffers())
    assert not module.state_dict()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(WAVEFORM), out)


@pytest.mark.gpu
def test_gpu_agrees_with_the_release(reference: dict[str, Tensor]) -> None:
    out = LogMel(**RELEASE)(reference["wav"][None].cuda())
    assert out.is_cuda
    expected = reference["normalized"][..., 0]
    assert (out[0].cpu() - expected).abs().max() <= 1e-5


# refusals


@pytest.mark.parametrize(
    ("waveform", "got"),
    [
        (torch.zeros(100), "torch.float32 \\[100\\]"),
        (torch.zeros(2, 1, 100), "torch.float32 \\[2, 1, 100\\]"),
        (torch.zeros(2, 100, dtype=torch.int16), "torch.int16 \\[2, 100\\]"),
        (torch.zeros(2, 0), "torch.float32 \\[2, 0\\]"),
        (torch.zeros(0, 100), "torch.float32 \\[0, 100\\]"),
    ],
)
def test_waveform_that_is_none_is_refused(waveform: Tensor, got: str) -> None:
    module = LogMel(**RELEASE)
    for compute in (module, module.log_mel):
        with pytest.raises(ValueError, match=f"needs float \\[B, S\\] .* got {got}"):
            compute(waveform)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_rate": 15_000}, "max_hertz \\(7600.0\\) <= sample_rate / 2 \\(7500.0\\)"),
        ({"min_hertz": 7600.0}, "min_hertz \\(7600.0\\) < max_hertz \\(7600.0\\)"),
        ({"min_hertz": -1.0}, "0 <= min_hertz \\(-1.0\\)"),
        ({"hop_samples": 0}, "at least 1, got \\(48000, 2048, 0, 80\\)"),
        ({"num_mels": 0}, "at least 1, got \\(48000, 2048, 1024, 0\\)"),
        ({"window_samples": 512}, "of 80 mel bins .* hold none of the 257 frequencies of a 48000"),
        ({"num_mels": 400}, "of 400 mel bins .* hold none of the 1025 frequencies of a 48000"),
    ],
)
def test_impossible_spectrogram_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMel(**{**RELEASE, **arguments})


@pytest.mark.parametrize("sample_rate", [16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_default_bins_hold_frequencies_at_the_usual_rates(sample_rate: int) -> None:
    assert LogMel(sample_rate=sample_rate)(WAVEFORM).shape == (1, 3, 80)


# torchaudio with and without its compiled part


def in_python(code: str, package: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which every warning is an error; `package` shadows the installed."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(package.parent if package else "")},
        cwd=Path(__file__).parents[2],
    )


def torchaudio_of(folder: Path, **files: str) -> Path:
    """A package torchaudio with these modules and `_extension/half.py`."""
    package = folder / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "_extension/half.py").touch()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return package


LOADED = "sorted(name for name in sys.modules if name.split('.')[0] == 'torchaudio')"


def test_module_is_built_without_torchaudio() -> None:
    done = in_python(
        "import sys, torch; from vatt.network.log_mel import LogMel\n"
        "LogMel(sample_rate=48_000)\n"
        f"print({LOADED})"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_installed_torchaudio_computes_without_a_warning() -> None:
    done = in_python(
        "import torch; from vatt.network.log_mel import LogMel, load_torchaudio\n"
        "print(LogMel(sample_rate=48_000)(torch.ones(1, 3000)).shape)\n"
        "import torchaudio; assert load_torchaudio() is torchaudio"
    )
    assert done.stderr == ""
    assert done.stdout == "torch.Size([1, 3, 80])\n"


def test_torchaudio_that_loads_keeps_its_compiled_part(tmp_path: Path) -> None:
    package = torchaudio_of(tmp_path, __init__="from . import _extension")
    done = in_python(
        "from vatt.network.torchaudio_loading import load_torchaudio\n"
        "print(load_torchaudio()._extension.__path__)",
        package,
    )
    assert done.stderr == ""
    assert str(package / "_extension") in done.stdout


@pytest.mark.parametrize("error", ["OSError", "RuntimeError", "ImportError"])
def test_compiled_part_that_does_not_load_is_left_out(tmp_path: Path, error: str) -> None:
    package = torchaudio_of(
        tmp_path,
        __init__="from . import _extension, functional",
        functional="from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE as available",
    )
    broken = f"from . import half\nraise {error}('libc10_cuda.so')"
    (package / "_extension/__init__.py").write_text(broken)
    done = in_python(
        "import sys; from vatt.network.log_mel import load_torchaudio\n"
        f"print(load_torchaudio().functional.available, {LOADED})",
        package,
    )
    assert done.stderr == ""
    loaded = ["torchaudio", "torchaudio._extension", "torchaudio.functional"]
    assert done.stdout == f"False {loaded}\n"  # and no half of the part that failed


@pytest.mark.parametrize("code", ["raise OSError('no sound')", "import a_thing_not_there"])
def test_torchaudio_that_loads_in_no_way_is_a_sentence(tmp_path: Path, code: str) -> None:
    done = in_python(
        "import sys\nfrom vatt.network.torchaudio_loading import load_torchaudio\n"
        "from vatt.errors import UserError\n"
        "try:\n    load_torchaudio()\nexcept UserError as error:\n"
        f"    print(error)\nprint({LOADED})",
        torchaudio_of(tmp_path, __init__=f"import torchaudio.functional\n{code}", functional=""),
    )
    assert done.stderr == ""
    sentence, loaded = done.stdout.splitlines()
    assert sentence.startswith("torchaudio does not load (")
    assert "pip install" in sentence
    assert loaded == "[]"
