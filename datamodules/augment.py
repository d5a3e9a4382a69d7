"""Random changes of a batch on the device: colours, noise and masks."""

import torch

from vatt.batch import Batch
from vatt.config.augment import AugmentConfig
from vatt.network.log_mel import LogMel
from vatt.network.tokens import normalize_video
from vatt.preprocess.transforms import add_audio_noise, jitter_color, mask_spectrogram


def augment_batch(batch: Batch, augment: AugmentConfig, log_mel: LogMel | None = None) -> Batch:
    """Changes colours and sound of clips that carry seeds, in float32 also under autocast.

    Args:
        batch: Batch with uint8 video and float waveforms, on any device; without seeds it is not
            changed.
        augment: Changes and their ranges; everything else remains bit-identical.
        log_mel: Spectrogram module of the model; needed if spectrograms are masked.

    Returns:
        A batch with the same rows; changed video is float32 in [-1, 1], masked sound is a
        spectrogram.
    """
    if batch.seeds is None:
        return batch
    video, audio = batch.video, batch.audio
    with torch.autocast(batch.device.type, enabled=False):
        if video is not None and augment.color_jitter_rate > 0:
            video = jitter_color(normalize_video(video), augment.color_jitter_rate, batch.seeds)
        if audio is not None and augment.audio_noise > 0:
            audio = add_audio_noise(audio, augment.audio_noise, batch.seeds)
        if audio is not None and log_mel is not None and augment.masks_spectrogram:
            audio = mask_spectrogram(log_mel(audio), augment, batch.seeds)
    return batch.with_inputs(video=video, audio=audio)
