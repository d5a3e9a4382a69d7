"""Inputs of open models, made from clips on their device by the maths of their processors.

Shape legend in `vatt.batch`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.encoders.transformers_loading import load_transformers
from vatt.open_models.settings import read_processor

MOST = 255.0
SMALLEST_POWER = 1e-10  # below which decibels are cut (`transformers.audio_utils.spectrogram`)
NORMALIZE_EPS = 1e-7  # of Wav2Vec2FeatureExtractor


class Pictures(nn.Module):
    """Frames scaled to [0, 1] and normalised by mean and deviation of a processor.

    Args:
        settings: Settings of an image or video processor.
        patch_size: Side of patches in pixels, for models that take patches. None: whole pictures.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: dict[str, Any], patch_size: int | None = None) -> None:
        super().__init__()
        normalizes = settings.get("do_normalize", True)
        mean, deviation = (0.0,) * 3, (1.0,) * 3
        if normalizes and "image_mean" in settings:
            mean, deviation = settings["image_mean"], settings["image_std"]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation), persistent=False)
        self.patch_size = patch_size

    def forward(self, video: Tensor) -> Tensor:
        """Clips uint8 or float in [-1, 1], `[rows, T, H, W, 3]` → float `[rows, T, 3, H, W]`."""
        share = (video + 1) / 2 if video.is_floating_point() else video.to(self.mean.dtype) / MOST
        frames = (share.to(self.mean.dtype) - self.mean) / self.deviation
        return frames.movedim(-1, 2)

    def patches(self, frames: Tensor) -> Tensor:
        """Frames `[N, 3, H, W]` → patches `[N, H' · W', 3 · P²]`, as SigLIP 2's processor."""
        assert self.patch_size is not None
        size = self.patch_size
        tiles = frames.unfold(2, size, size).unfold(3, size, size)  # [N, 3, H', W', P, P]
        return tiles.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


class Sound(nn.Module):
    """Waveforms to the input of an encoder of sound.

    CLAP's log-mel spectrograms, the normalised waveforms of wav2vec 2.0 and PE-AV's waveforms are
    computed on the device. Any other feature extractor runs on the host.

    Args:
        source: Folder or hub id of the model.
    """

    mel_filters: Tensor
    window: Tensor

    def __init__(self, source: str) -> None:
        super().__init__()
        settings = read_processor(source, "feature_extractor")
        self.kind = settings.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
        self.settings = settings
        self.extractor = None
        if self.kind in ("Wav2Vec2FeatureExtractor", "PeAudioFeatureExtractor"):
            return
        loading = load_transformers().AutoFeatureExtractor
        extractor = loading.from_pretrained(source)
        if self.kind != "ClapFeatureExtractor":
            self.extractor = extractor
            return
        fuses = extractor.truncation == "fusion"
        filters = extractor.mel_filters if fuses else extractor.mel_filters_slaney
        self.num_copies = 4 if fuses else 1
        self.length = extractor.nb_max_samples
        self.repeats = extractor.padding in ("repeat", "repeatpad")
        self.hop_length, self.size = extractor.hop_length, extractor.fft_window_size
        self.register_buffer("mel_filters", torch.tensor(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)

    def forward(self, audio: Tensor, dtype: torch.dtype) -> Tensor:
        """Waveforms float `[rows, S]` → the model's input, of the given dtype."""
        if self.kind == "ClapFeatureExtractor":
            with torch.autocast(audio.device.type, enabled=False):
                return self._log_mel(audio.to(self.window.dtype)).to(dtype)
        if self.kind == "PeAudioFeatureExtractor":
            return self._whole_hops(audio)[:, None].to(dtype)
        if self.extractor is None:
            return self._normalized(audio).to(dtype)
        rows = [row.numpy() for row in audio.detach().float().cpu()]
        made = self.extractor(rows, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        return made[self.extractor.model_input_names[0]].to(audio.device, dtype)

    def _normalized(self, audio: Tensor) -> Tensor:
        if not self.settings.get("do_normalize", True):
            return audio
        variance, mean = torch.var_mean(audio, dim=1, keepdim=True, correction=0)
        return (audio - mean) / (variance + NORMALIZE_EPS).sqrt()

    def _whole_hops(self, audio: Tensor) -> Tensor:
        missing = -audio.shape[1] % self.settings["hop_length"]
        return F.pad(audio[:, None], (0, missing), mode="reflect")[:, 0] if missing else audio

    def _log_mel(self, audio: Tensor) -> Tensor:
        """CLAP's log-mel spectrograms in decibels, `[rows, copies, M, F]`."""
        audio = audio[:, : self.length]
        if self.repeats and audio.shape[1] < self.length:
            audio = audio.repeat(1, self.length // audio.shape[1])
        audio = F.pad(audio, (0, self.length - audio.shape[1]))
        spectrum = torch.stft(
            audio,
            self.size,
            self.hop_length,
            window=self.window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = torch.einsum("nft,fm->ntm", spectrum.abs().square(), self.mel_filters)
        decibels = 10 * power.clamp(min=SMALLEST_POWER).log10()
        return decibels[:, None].expand(-1, self.num_copies, -1, -1)
