"""Log-mel spectrograms, on torchaudio.

Shape legend in `vatt.batch`; here also `M` frames of a spectrogram, and `Q` frequencies of its
Fourier transform. Windows and filter banks are not buffers of a module: they are made at first use
and cached per device. They are therefore not in a state dict, not cast with the weights, and not
lost if a model is built on the meta device.
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.config.geometry import AudioConfig
from vatt.errors import UserError
from vatt.network.torchaudio_loading import load_torchaudio

LOG_FACTOR = 1e4  # log(1 + 1e4 * mel), official preprocessing


class LogMel(nn.Module):
    """Waveform → log-mel spectrogram in [0, 1], the input of the spectrogram models.

    The module has no parameters or buffers. The defaults are those of the official release for 48
    kHz: 153,600 samples become 150 frames × 80 bins.

    Args:
        sample_rate: Sample rate of the waveforms in Hz.
        window_samples: Length of the periodic Hann window; the Fourier transform is as long as the
            next power of two.
        hop_samples: Samples from one frame to the next.
        num_mels: Number of mel bins.
        min_hertz: Lower edge of the first bin's triangle.
        max_hertz: Upper edge of the last bin's triangle.

    Raises:
        UserError: a size is below 1, the frequency range is empty or exceeds sample_rate / 2, or a
            bin is too narrow to contain a frequency of the Fourier transform.

    Source: google-research/vatt, audio preprocessing (`tf.signal.stft` with `pad_end`).
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        window_samples: int = 2048,  # 43 ms at 48 kHz
        hop_samples: int = 1024,
        num_mels: int = 80,
        min_hertz: float = 80.0,
        max_hertz: float = 7600.0,
    ) -> None:
        super().__init__()
        if min(sample_rate, window_samples, hop_samples, num_mels) < 1:
            raise UserError(
                "sample_rate, window_samples, hop_samples and num_mels must be at least 1, got "
                f"{(sample_rate, window_samples, hop_samples, num_mels)}"
            )
        self.sample_rate = sample_rate
        self.window_samples = window_samples
        self.hop_samples = hop_samples
        self.num_mels = num_mels
        self.min_hertz = min_hertz
        self.max_hertz = max_hertz
        self.fft_samples = 1 << (window_samples - 1).bit_length()
        self._filter_bank(torch.device("cpu"))  # refuses impossible bins now, not at the first clip

    def extra_repr(self) -> str:
        """Sizes, for `print(module)`."""
        return (
            f"{self.sample_rate} Hz, window {self.window_samples}, hop {self.hop_samples}, "
            f"{self.num_mels} mels in [{self.min_hertz}, {self.max_hertz}] Hz"
        )

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """Log-mel spectrogram of each clip, scaled to [0, 1].

        Args:
            waveform_BS: float `[B, S]` in [-1, 1], on any device.

        Returns:
            float32 `[B, M, F]` with M = ceil(S / hop_samples). The smallest value of each clip is
            0, the largest 1. A constant spectrogram, such as that of silence, is all 0.

        Raises:
            ValueError: the waveform has another rank or dtype, or is empty.
        """
        log_mel_BMF = self.log_mel(waveform_BS)
        lowest = log_mel_BMF.amin(dim=(1, 2), keepdim=True)
        span = log_mel_BMF.amax(dim=(1, 2), keepdim=True) - lowest
        return (log_mel_BMF - lowest) / torch.where(span > 0, span, 1.0)

    def log_mel(self, waveform_BS: Tensor) -> Tensor:
        """log(1 + 1e4 · mel) of each clip, before scaling to [0, 1].

        Computed in float32 even under autocast: bfloat16 is too coarse for the range of a
        spectrogram.

        Args:
            waveform_BS: float `[B, S]` in [-1, 1], on any device.

        Returns:
            float32 `[B, M, F]`, at least 0.

        Raises:
            ValueError: the waveform has another rank or dtype, or is empty.
        """
        if waveform_BS.ndim != 2 or not waveform_BS.is_floating_point() or not waveform_BS.numel():
            raise ValueError(
                "a log-mel spectrogram needs float [B, S] with at least one clip and one sample, "
                f"got {waveform_BS.dtype} {list(waveform_BS.shape)}"
            )
        device = waveform_BS.device
        spectrogram = _spectrogram(self.window_samples, self.fft_samples, self.hop_samples, device)
        with torch.autocast(device.type, enabled=False):
            magnitude_BQM = spectrogram(self._pad(waveform_BS.float()))
            mel_BMF = magnitude_BQM.transpose(1, 2) @ self._filter_bank(device)
            return torch.log1p(LOG_FACTOR * mel_BMF)

    def _pad(self, waveform_BS: Tensor) -> Tensor:
        """Pads with zeros, so that all frames that begin inside the waveform are complete."""
        num_samples = waveform_BS.shape[1]
        last_begin = (num_spectrogram_frames(num_samples, self.hop_samples) - 1) * self.hop_samples
        # torch centres a window in a longer transform: these zeros move it to the frame's begin
        margin = self.fft_samples - self.window_samples
        before = margin // 2
        after = last_begin + self.window_samples + margin - before - num_samples
        return F.pad(waveform_BS, (before, after))

    def _filter_bank(self, device: torch.device) -> Tensor:
        return _filter_bank_on(
            device,
            num_frequencies=self.fft_samples // 2 + 1,
            num_mels=self.num_mels,
            sample_rate=self.sample_rate,
            min_hertz=self.min_hertz,
            max_hertz=self.max_hertz,
        )


def log_mel_of(audio: AudioConfig) -> LogMel | None:
    """Spectrogram module for an audio geometry; None if its models take waveforms."""
    mel = audio.spectrogram
    if mel is None:
        return None
    return LogMel(
        sample_rate=audio.sample_rate,
        window_samples=mel.window_samples,
        hop_samples=mel.hop_samples,
        num_mels=mel.num_mels,
        min_hertz=mel.min_hertz,
        max_hertz=mel.max_hertz,
    )


def num_spectrogram_frames(num_samples: int, hop_samples: int) -> int:
    """Number of frames of a waveform's spectrogram: ceil(samples / hop)."""
    return -(-num_samples // hop_samples)


def mel_filter_bank(
    *,
    num_frequencies: int,
    num_mels: int,
    sample_rate: int,
    min_hertz: float,
    max_hertz: float,
) -> Tensor:
    """Triangular filters that map the frequencies of a Fourier transform to mel bins.

    The triangles are linear in mel, 1127 ln(1 + f / 700), have peak 1 and are not normalised by
    area; none contains frequency 0. (`torchaudio.functional.melscale_fbanks` makes triangles that
    are linear in Hz.) Computed in float64.

    Args:
        num_frequencies: Number of frequencies of the Fourier transform, from 0 to sample_rate / 2.
        num_mels: Number of bins.
        sample_rate: Sample rate in Hz.
        min_hertz: Lower edge of the first triangle.
        max_hertz: Upper edge of the last one.

    Returns:
        float32 `[Q, F]` in [0, 1], on the CPU.

    Raises:
        UserError: the range is empty or exceeds sample_rate / 2, or a bin contains no frequency.

    Source: tf.signal.linear_to_mel_weight_matrix.
    """
    nyquist = sample_rate / 2
    if not 0 <= min_hertz < max_hertz <= nyquist:
        raise UserError(
            f"mel bins need 0 <= min_hertz ({min_hertz}) < max_hertz ({max_hertz}) <= "
            f"sample_rate / 2 ({nyquist})"
        )
    hertz_Q = torch.linspace(0, nyquist, num_frequencies, dtype=torch.float64, device="cpu")
    mel_Q1 = 1127 * torch.log1p(hertz_Q / 700)[:, None]
    lowest, highest = (1127 * math.log1p(hertz / 700) for hertz in (min_hertz, max_hertz))
    # one edge is the upper end of a triangle, the peak of the next and the lower end of the third
    edges = torch.linspace(lowest, highest, num_mels + 2, dtype=torch.float64, device="cpu")
    lower_F, centre_F, upper_F = edges[:-2], edges[1:-1], edges[2:]
    rising_QF = (mel_Q1 - lower_F) / (centre_F - lower_F)
    falling_QF = (upper_F - mel_Q1) / (upper_F - centre_F)
    # 0 Hz lies at or below every lower edge
    bank_QF = torch.minimum(rising_QF, falling_QF).clamp(min=0)
    if num_empty := int((bank_QF.amax(dim=0) == 0).sum()):
        raise UserError(
            f"{num_empty} of {num_mels} mel bins in [{min_hertz}, {max_hertz}] Hz hold none of the "
            f"{num_frequencies} frequencies of a {sample_rate} Hz waveform's transform: fewer bins "
            "or a longer window"
        )
    return bank_QF.float()


# The first call may come from inside inference_mode or a `with torch.device("meta")`; what is kept
# must serve training on a real device afterwards.


@cache
def _filter_bank_on(device: torch.device, **arguments: Any) -> Tensor:
    with torch.inference_mode(mode=False):
        return mel_filter_bank(**arguments).to(device)


@cache
def _spectrogram(
    window_samples: int, fft_samples: int, hop_samples: int, device: torch.device
) -> nn.Module:
    transforms = load_torchaudio().transforms
    with torch.inference_mode(mode=False), torch.device("cpu"):
        spectrogram: nn.Module = transforms.Spectrogram(
            n_fft=fft_samples,
            win_length=window_samples,
            hop_length=hop_samples,
            power=1.0,
            center=False,
            window_fn=_periodic_hann,
        )
        return spectrogram.to(device)


def _periodic_hann(num_samples: int) -> Tensor:
    """Window of torch, without the additional sample that torch allocates."""
    return torch.hann_window(num_samples).clone()
