"""Cost of a model, by its configuration: FLOPs of a forward pass, and parameters.

Utilisation of a device (FLOP/s of the model relative to the peak) counts 3 forward passes per
training step: the backward pass multiplies once for the inputs and once for the weights. Shape
legend in `vatt.batch`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from vatt.config.geometry import MODALITIES, AudioConfig, VideoConfig
from vatt.config.model import EncoderConfig, VATTConfig
from vatt.config.presets import MEDIUM, PRESETS
from vatt.errors import UserError
from vatt.network.log_mel import num_spectrogram_frames
from vatt.network.model import VATT
from vatt.network.tokens import patch_kernel

Convention = Literal["true", "paper"]

# Sums of the paper's encoders alone: MBS is 155.0 + 87.9 + 20.9 million. Source: paper, Table 7.
PAPER_PARAMETERS = {"bbs": 197e6, "mbs": 264e6, "lbs": 415e6, "ma-medium": 155e6}
# Variables of the official code, BatchNorm's statistics and word vectors included.
OFFICIAL_PARAMETERS = {
    "bbs": 213_540_652,
    "mbs": 280_569_132,
    "lbs": 431_723_820,
    "ma-medium": 182_653_696,
    "bbs-spectrogram": 212_518_444,
}
# FLOPs by DropToken's rate. Source: paper, Table 5.
PAPER_FLOPS = {"mbs": {0.0: 784.8e9, 0.25: 574.2e9, 0.5: 375.4e9, 0.75: 188.1e9}}
# Of the Medium video tower by frames and image size. Source: paper, Table 6.
PAPER_VIDEO_FLOPS = {
    (32, 224): {0.0: 548.1e9},
    (64, 224): {0.0: 1222.1e9},
    (32, 320): {0.0: 1252.3e9, 0.25: 898.9e9, 0.5: 572.5e9, 0.75: 279.8e9},
}


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of the forward pass of one sample by part; a multiply-add counts as 2.

    Args:
        video: Tokens, encoder and projections of video; with a shared encoder, its work on video.
        audio: The same for audio, including the mel filter bank of a spectrogram.
        text: The same for all captions of the sample.
        heads: Heads of the common spaces and classifier.
    """

    video: int
    audio: int
    text: int
    heads: int

    @property
    def total(self) -> int:
        """Sum over all parts."""
        return self.video + self.audio + self.text + self.heads


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Number of parameters of a model by part, including statistics of BatchNorm.

    Args:
        video: Tokens and projections of video, and its encoder unless it is shared.
        audio: The same for audio.
        text: The same for text, without the word vectors.
        shared: Shared encoder (agnostic arrangement only).
        word_vectors: Word vectors, trained or frozen.
        heads: Heads of the common spaces and classifier.
        trainable: Number of these that are trained; statistics of BatchNorm and frozen word vectors
            are not.
    """

    video: int
    audio: int
    text: int
    shared: int
    word_vectors: int
    heads: int
    trainable: int

    @property
    def total(self) -> int:
        """Sum over all parts, as the official code counts."""
        towers = self.video + self.audio + self.text + self.shared
        return towers + self.word_vectors + self.heads


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published numbers of a model.

    Args:
        parameters: Number of parameters in the paper, rounded to millions. None: not reported.
        official_parameters: Exact number of parameters in the official code. None: unknown.
        flops: FLOPs of one sample in the paper, by DropToken rate; empty if not reported.
    """

    parameters: float | None
    official_parameters: int | None
    flops: Mapping[float, float]


def count_flops(
    config: VATTConfig,
    *,
    num_captions: int = 5,
    drop_token: float | None = None,
    convention: Convention = "true",
) -> Flops:
    """FLOPs of the forward pass of one sample that has all modalities of the model.

    Only matrix products count, not norms, activations, softmax, Fourier transforms or positions.
    Captions are assumed to have `max_words` words; shorter captions cost less.

    Args:
        config: Configuration of the model.
        num_captions: Captions of the sample, `K`; 5 in the paper's pre-training.
        drop_token: Share of video and audio tokens dropped, in [0, 1); 0 for evaluation. None: as
            in training, by `drop_token` and `audio_drop_token` of the configuration.
        convention: `true`: FLOPs that the hardware computes, equal to those of
            `torch.utils.flop_counter` for `vatt.VATT`. `paper`: counts one of the two matrix
            products of attention, and the projection of all patches even if they are dropped;
            within 1 % of the paper's numbers for pre-training, and 0.7 to 1.4 % below those for
            fine-tuning.

    Raises:
        UserError: there is less than one caption, or a rate is out of range.

    Source: the paper does not say how it counts; the convention `paper` fits its Tables 5 and 6.
    """
    if num_captions < 1:
        raise UserError(f"num_captions must be at least 1, got {num_captions}")
    if drop_token is not None and not 0 <= drop_token < 1:
        raise UserError(f"drop_token must be in [0, 1), got {drop_token}")
    towers = dict.fromkeys(MODALITIES, 0)
    for modality in config.modalities:
        if modality == "text":
            towers["text"] = num_captions * _text(config, convention)
        else:
            rate = config.drop_rate(modality) if drop_token is None else drop_token
            towers[modality] = _video_or_audio(config, modality, rate, convention)
    return Flops(**towers, heads=_head(config, num_captions) + _classifier(config))


def count_parameters(config: VATTConfig) -> Parameters:
    """Counts the parameters of a model on the meta device, without memory for weights."""
    with torch.device("meta"):
        model = VATT(config)
    parts = dict.fromkeys((*MODALITIES, "shared", "word_vectors", "heads"), 0)
    for name, tensor in model.state_dict().items():
        group, member, *_ = name.split(".")
        if (group, member) == ("text_tokens", "embedding"):
            part = "word_vectors"
        elif group in ("encoders", "post_projections"):
            part = member
        else:
            part = "heads" if group in ("head", "classifier") else group.removesuffix("_tokens")
        parts[part] += tensor.numel()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(**parts, trainable=trainable)


def published(config: VATTConfig) -> Published:
    """Numbers of the paper and the official code for a model.

    The DropToken rates and `train_embedding` may differ from those of the preset.
    """
    name = next((n for n in PRESETS if _comparable(PRESETS[n]) == _comparable(config)), "")
    flops = PAPER_FLOPS.get(name, {})
    encoder = replace(config.tower("video"), dropout=MEDIUM.dropout)
    if (
        config.modalities == ("video",)
        and (config.arrangement, encoder) == ("specific", MEDIUM)
        and config.video.patch_size == VideoConfig().patch_size
    ):
        flops = PAPER_VIDEO_FLOPS.get((config.video.num_frames, config.video.image_size), {})
    return Published(
        parameters=PAPER_PARAMETERS.get(name),
        official_parameters=OFFICIAL_PARAMETERS.get(name),
        flops=flops,
    )


def kept_tokens(geometry: VideoConfig | AudioConfig, rate: float) -> int:
    """Number of tokens that DropToken keeps (`tokens.draw_kept_tokens`), without AGG."""
    return max(1, geometry.num_tokens - int(rate * geometry.num_tokens))


def _comparable(config: VATTConfig) -> VATTConfig:
    """The configuration with settings that change no size at their defaults."""
    text = replace(config.text, train_embedding=True)
    audio = config.audio
    if audio.spectrogram is not None:
        audio = replace(audio, spectrogram=replace(audio.spectrogram, transposed_positions=False))
    return replace(config, text=text, audio=audio, drop_token=0.5, audio_drop_token=None)


def _video_or_audio(config: VATTConfig, modality: str, rate: float, convention: Convention) -> int:
    geometry = config.video if modality == "video" else config.audio
    encoder = config.tower(modality)
    num_kept = kept_tokens(geometry, rate)
    kernel, num_channels = patch_kernel(geometry)
    projected = num_kept if convention == "true" else geometry.num_tokens
    flops = _dense(projected, math.prod(kernel) * num_channels, encoder.d_model)
    if config.arrangement == "agnostic":
        flops += _dense(projected, encoder.d_model, encoder.d_model)
        flops += _dense(1, encoder.d_model, config.d_post)
    if modality == "audio" and convention == "true":  # the paper starts at the spectrogram
        flops += _mel_bins(config.audio)
    return flops + _encoder(1 + num_kept, encoder, convention)


def _text(config: VATTConfig, convention: Convention) -> int:
    """FLOPs of one caption."""
    text, encoder = config.text, config.tower("text")
    if text.tower == "linear":
        return _dense(text.max_words, text.d_embedding, text.d_linear)
    flops = _encoder(1 + text.max_words, encoder, convention)
    if config.arrangement == "agnostic":
        flops += _dense(text.max_words, text.d_embedding, encoder.d_model)
        return flops + _dense(1, encoder.d_model, config.d_post)
    # T5's AGG is among the word vectors
    return flops + _dense(1 + text.max_words, text.d_embedding, encoder.d_model)


def _encoder(num_tokens: int, encoder: EncoderConfig, convention: Convention) -> int:
    width = encoder.num_heads * encoder.d_kv
    attention_products = 2 if convention == "true" else 1  # scores · values is the second
    block = (
        _dense(num_tokens, encoder.d_model, 3 * width)
        + attention_products * _dense(num_tokens, width, num_tokens)
        + _dense(num_tokens, width, encoder.d_model)
        + 2 * _dense(num_tokens, encoder.d_model, encoder.d_ff)
    )
    return encoder.num_layers * block


def _mel_bins(audio: AudioConfig) -> int:
    """FLOPs of the filter bank of `vatt.network.log_mel.LogMel`."""
    mel = audio.spectrogram
    if mel is None:
        return 0
    fft_samples = 1 << (mel.window_samples - 1).bit_length()
    num_windows = num_spectrogram_frames(audio.num_samples, mel.hop_samples)
    return _dense(num_windows, fft_samples // 2 + 1, mel.num_mels)


def _head(config: VATTConfig, num_captions: int) -> int:
    head = config.head
    if head is None:
        return 0
    rows = {name: num_captions if name == "text" else 1 for name in config.modalities}
    widths = {name: config.feature_width(name) for name in config.modalities}
    if head.kind == "joint":
        return sum(_dense(rows[name], widths[name], head.d_joint) for name in rows)
    va_va, va_vt = _dense(1, head.d_va, head.d_va), _dense(1, head.d_va, head.d_vt)
    flops = _dense(1, widths["video"], head.d_va) + va_va
    if "audio" in rows:
        flops += _dense(1, widths["audio"], head.d_va) + (head.audio_layers - 1) * va_va
    if "text" in rows:
        flops += va_vt + _dense(num_captions, widths["text"], head.d_vt)
    return flops


def _classifier(config: VATTConfig) -> int:
    if config.classifier is None:
        return 0
    width = config.feature_width(config.classifier.modality)
    return _dense(1, width, config.classifier.num_classes)


def _dense(rows: int, d_in: int, d_out: int) -> int:
    """FLOPs of `[rows, d_in] @ [d_in, d_out]`."""
    return 2 * rows * d_in * d_out
