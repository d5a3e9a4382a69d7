"""Predicted time of a training step: the operators that were counted, at rates of good kernels.

The bytes are those of the operators of a step of `ma-medium` with 64 clips, in bf16, counted
without a GPU. A step waits for nothing: not for data, the host or other GPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vatt.config.model import VATTConfig
from vatt.network.flops import count_flops, count_parameters, kept_tokens

CAPTIONS = 5
# Shares of the peak rate: of products in cuBLAS, of attention in FlashAttention-2.
PRODUCTS, ATTENTION, ATTENTION_BACKWARD = 0.70, 0.36, 0.28
STREAMS = 0.85  # share of the bandwidth that operators reach that only read and write
# Bytes per token and width of a block besides products and attention, forward and backward. Eager:
# counted, 312 GB, of which 86 bytes forward. Compiled: each norm, GELU and sum reads and writes
# once, the residual stream in float32 and branches in bf16: 44 bytes, and twice that backward.
EAGER_BYTES, COMPILED_BYTES = (86, 184), (44, 88)
CLIP_BYTES = 250e6  # of tokens, heads and loss, per clip of the published size
AUGMENTATION_BYTES = 239e6  # per clip of the published size
ADAM_BYTES = 32  # per parameter: reads gradient, weight and both moments, writes the last three


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Seconds of the parts of a training step.

    Args:
        products: Products of matrices.
        attention: Attention.
        rest: The rest of the network, and the loss.
        augmentation: Random changes of clips.
        optimizer: Adam.
    """

    products: float
    attention: float
    rest: float
    augmentation: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(vars(self).values())


def predict_step(
    config: VATTConfig,
    num_clips: int,
    *,
    peak: float,
    bandwidth: float,
    compiled: bool = False,
    recomputed: bool = False,
) -> StepSeconds:
    """Time of a training step in bf16 on one GPU.

    Args:
        config: Model with video, audio and text of the published sizes.
        num_clips: Clips of the step, with five captions each.
        peak: Peak rate of the GPU in bf16, FLOP/s.
        bandwidth: Bandwidth of its memory, bytes/s.
        compiled: Whether blocks are compiled.
        recomputed: Whether activations are recomputed, or the encoders run twice for micro-batches.
    """
    runs = 2 if recomputed else 1  # forward
    attention = num_clips * _attention_flops(config)
    products = num_clips * count_flops(config, num_captions=CAPTIONS).total - attention
    forward, backward = COMPILED_BYTES if compiled else EAGER_BYTES
    size = num_clips * sum(
        count * length * config.tower(name).num_layers * config.tower(name).d_model
        for name, count, length in _sequences(config)
    )
    streams = STREAMS * bandwidth
    return StepSeconds(
        products=(runs + 2) * products / (PRODUCTS * peak),
        attention=attention * (runs / ATTENTION + 2.5 / ATTENTION_BACKWARD) / peak,
        rest=(size * (runs * forward + backward) + num_clips * CLIP_BYTES) / streams,
        augmentation=num_clips * AUGMENTATION_BYTES / streams,
        optimizer=count_parameters(config).trainable * ADAM_BYTES / streams,
    )


def _sequences(config: VATTConfig) -> Sequence[tuple[str, int, int]]:
    """Modality, number of sequences of a clip, and their tokens in training."""
    video = kept_tokens(config.video, config.drop_rate("video"))
    audio = kept_tokens(config.audio, config.drop_rate("audio"))
    lengths = (("video", 1, 1 + video), ("audio", 1, 1 + audio))
    return (*lengths, ("text", CAPTIONS, 1 + config.text.max_words))


def _attention_flops(config: VATTConfig) -> int:
    """FLOPs of both products of attention of a clip, forward."""
    total = 0
    for name, count, length in _sequences(config):
        tower = config.tower(name)
        total += count * tower.num_layers * 4 * length**2 * tower.num_heads * tower.d_kv
    return total
