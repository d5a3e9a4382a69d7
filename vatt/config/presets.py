"""Configurations of the published models by name, and of their classifiers.

| preset | video | audio | text | source |
|---|---|---|---|---|
| ma-base, ma-medium, ma-large | one encoder for all | | | paper Table 7 (Medium); [C] `ut_*` |
| bbs, mbs, lbs | Base, Medium, Large | Base | Small (T5) | paper Table 7; [C] `tx_fac` |
| …-spectrogram | as above | Base, no biases | Small (T5) | paper Table 10; [C] `spt_base` |

The official code has three sizes of the agnostic model; the paper reports Medium. All share the
inputs of paper section 4.1 and the spaces of section 3.4, which are the defaults of
`vatt.config.model`.
"""

from dataclasses import replace
from typing import Any

from vatt.config.geometry import AudioConfig, SpectrogramConfig, TextConfig, VideoConfig
from vatt.config.model import ClassifierConfig, EncoderConfig, HeadConfig, VATTConfig
from vatt.errors import UserError

# What fine-tuning reads, paper section 4.2: 25 fps and a stride of 2; AudioSet at 24 kHz.
FINE_TUNING_FRAME_RATE = 12.5
FINE_TUNING_SAMPLE_RATE = 24_000

# Encoder sizes, paper Table 7. Small is the T5 text tower.
SMALL = EncoderConfig(num_layers=6, d_model=512, d_ff=2048, num_heads=8, bias=False)
BASE = EncoderConfig(num_layers=12, d_model=768, d_ff=3072, num_heads=12)
MEDIUM = EncoderConfig(num_layers=12, d_model=1024, d_ff=4096, num_heads=16)
LARGE = EncoderConfig(num_layers=24, d_model=1024, d_ff=4096, num_heads=16)
TINY = EncoderConfig(num_layers=2, d_model=32, d_ff=64, num_heads=2, d_kv=16, dropout=0.0)


def _specific(video: EncoderConfig) -> VATTConfig:
    return VATTConfig(
        arrangement="specific", video_encoder=video, audio_encoder=BASE, text_encoder=SMALL
    )


def _spectrogram(video: EncoderConfig) -> VATTConfig:
    return replace(
        _specific(video),
        audio=AudioConfig(spectrogram=SpectrogramConfig()),
        audio_encoder=replace(BASE, bias=False),
        audio_drop_token=0.0,  # 144 tokens are few [C]
    )


PRESETS = {
    "ma-base": VATTConfig(encoder=BASE),
    "ma-medium": VATTConfig(encoder=MEDIUM),
    "ma-large": VATTConfig(encoder=LARGE),
    "bbs": _specific(BASE),
    "mbs": _specific(MEDIUM),
    "lbs": _specific(LARGE),
    "bbs-spectrogram": _spectrogram(BASE),
    "mbs-spectrogram": _spectrogram(MEDIUM),
    "lbs-spectrogram": _spectrogram(LARGE),
    "tiny": VATTConfig(
        video=VideoConfig(num_frames=4, frame_rate=5.0, image_size=32, patch_size=(2, 8, 8)),
        audio=AudioConfig(sample_rate=8_000, num_samples=6_400),  # 0.8 s, as the video
        text=TextConfig(vocab_size=256, d_embedding=16),
        encoder=TINY,
        head=HeadConfig(d_va=24, d_vt=12),
        d_post=32,
    ),
}


def preset(name: str) -> VATTConfig:
    """Configuration of a published model by name, such as `preset("mbs")`.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def as_classifier(
    config: VATTConfig, modality: str, num_classes: int, **changes: Any
) -> VATTConfig:
    """Configuration for fine-tuning: the tower of one modality with a classifier.

    Args:
        config: Configuration of a pre-training model.
        modality: `video`, `audio`, or `image`, which is a video of one patch in time [P].
        num_classes: Number of classes.
        changes: Further fields of the result to set.

    Raises:
        UserError: there are no classifiers for this modality.
    """
    # 32 frames at a stride of 2 from 25 fps; AudioSet: 153,600 samples are 6.4 s
    video = replace(config.video, frame_rate=FINE_TUNING_FRAME_RATE)
    audio = replace(config.audio, sample_rate=FINE_TUNING_SAMPLE_RATE)
    if modality == "image":
        grid = video.position_grid or video.grid
        video = replace(video, num_frames=video.patch_size[0], position_grid=grid)
        modality = "video"
    if modality == "video":
        classifier = ClassifierConfig(num_classes=num_classes)
    elif modality == "audio":
        classifier = ClassifierConfig(
            modality="audio", num_classes=num_classes, dropout=0.0, multi_label=True
        )
    else:
        raise UserError(f"there are classifiers on video, audio and image, not on {modality!r}")
    parts: dict[str, Any] = {"modalities": (modality,), "video": video, "audio": audio}
    # [C] forgets to switch DropToken off
    parts |= {"head": None, "classifier": classifier, "drop_token": 0.0, "audio_drop_token": None}
    return replace(config, **(parts | changes))
