"""Random batches in which no clip lacks a modality."""

import torch
import torch.nn.functional as F

from vatt.batch import Batch, LabelledBatch
from vatt.config.model import VATTConfig

CAPTIONS = 5  # of a clip, as in the paper's pre-training


def full_batch(config: VATTConfig, batch_size: int) -> Batch:
    """Clips with picture, sound and captions of full length, on the default device."""
    video, text = config.video, config.text
    frame = (video.image_size, video.image_size, 3)
    return Batch(
        video=torch.randint(256, (batch_size, video.num_frames, *frame), dtype=torch.uint8),
        audio=torch.rand(batch_size, config.audio.num_samples) - 0.5,
        text=torch.randint(1, text.vocab_size, (batch_size, CAPTIONS, text.max_words)),
        seeds=torch.arange(batch_size),
    )


def labelled_batch(config: VATTConfig, batch_size: int) -> LabelledBatch:
    """Videos of full size with one label each, for a classifier of videos."""
    assert config.classifier is not None
    classes = torch.arange(batch_size) % config.classifier.num_classes
    return LabelledBatch(
        video=full_batch(config, batch_size).video,
        labels=F.one_hot(classes, config.classifier.num_classes).float(),
        seeds=torch.arange(batch_size),
    )
