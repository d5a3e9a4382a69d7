"""The random changes of a whole batch, on the device: colours and noise."""

import dataclasses

from vatt.batch import Batch
from vatt.preprocess import normalize_video
from vatt.transforms import AugmentConfig, add_audio_noise, jitter_color


def augment_batch(batch: Batch, augment: AugmentConfig) -> Batch:
    """Changes colours and sound of clips that carry seeds.

    Args:
        batch: uint8 video and float waveforms, on any device; without seeds nothing is changed.
        augment: What is changed, and how much. What it leaves out stays as it is, to the bit.

    Returns:
        A batch with the same rows; changed video is float32 in [-1, 1].
    """
    if batch.seeds is None:
        return batch
    video, audio = batch.video, batch.audio
    if video is not None and augment.color_jitter_rate > 0:
        video = jitter_color(normalize_video(video), augment.color_jitter_rate, batch.seeds)
    if audio is not None and augment.audio_noise > 0:
        audio = add_audio_noise(audio, augment.audio_noise, batch.seeds)
    return dataclasses.replace(batch, video=video, audio=audio)
