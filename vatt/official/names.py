"""Official variables of each of our tensors.

Names are those of TensorFlow's object graph without their suffix, such as
`model/layer_with_weights-0/_base_layer/vid_backbone/_base/agg_embedding`.
"""

from collections.abc import Iterator
from typing import NamedTuple

from vatt.config.model import EncoderConfig, VATTConfig
from vatt.official.settings import NAMES

ROOT = "model/layer_with_weights-0"
PRETRAINED, FINE_TUNED = f"{ROOT}/_base_layer", f"{ROOT}/_base"
UNIFIED = f"{PRETRAINED}/unified_backbone/unified_transformer"
HEAD = f"{ROOT}/_head_layer/_bridge_heads/0"
CLASSIFIER = f"{ROOT}/_ops/cls"
SLOT = "/.OPTIMIZER_SLOT/optimizer/"  # between a variable and its optimiser state
PATCHING = {  # projection of patches, and axes of their positions
    "video": ("voxel_to_patch", ("temporal", "vertical", "horizontal")),
    "waveform": ("wave_to_patch", ("temporal",)),
    "spectrogram": ("spectrum_to_patch", ("temporal", "spectoral")),  # its spelling
}


class Part(NamedTuple):
    """One of our tensors, with the official variables that it is made of.

    Args:
        ours: Name in our state dict.
        official: Official variables, stacked along our first axis; mostly one.
        is_kernel: Whether the variables are kernels, `[…, in, out]`; ours are `[out, in]`.
    """

    ours: str
    official: tuple[str, ...]
    is_kernel: bool


def parts_of(config: VATTConfig) -> list[Part]:
    """Official variables of every tensor of our model."""
    return [
        *(part for modality in config.modalities for part in _tokens(config, modality)),
        *_encoders(config),
        *(_fac_head(config) if config.head and config.head.kind == "fac" else ()),
        *(_joint_head(config) if config.head and config.head.kind == "joint" else ()),
        *(_dense("classifier.linear", CLASSIFIER) if config.classifier else ()),
    ]


def _copy(ours: str, official: str) -> Part:
    return Part(ours, (official,), is_kernel=False)


def _dense(ours: str, official: str, *, bias: bool = True) -> Iterator[Part]:
    yield Part(f"{ours}.weight", (f"{official}/kernel",), is_kernel=True)
    if bias:
        yield _copy(f"{ours}.bias", f"{official}/bias")


def _layer_norm(ours: str, official: str) -> Iterator[Part]:
    yield _copy(f"{ours}.weight", f"{official}/gamma")
    yield _copy(f"{ours}.bias", f"{official}/beta")


def _batch_norm(ours: str, official: str) -> Iterator[Part]:
    yield from _layer_norm(ours, official)
    yield _copy(f"{ours}.running_mean", f"{official}/moving_mean")
    yield _copy(f"{ours}.running_variance", f"{official}/moving_variance")


def _tower(config: VATTConfig, modality: str) -> str:
    """Prefix of a modality's own variables."""
    if config.head is None:
        return FINE_TUNED
    if config.arrangement == "agnostic":
        return UNIFIED
    return f"{PRETRAINED}/{NAMES[modality]}_backbone" + ("/_base" if modality != "text" else "")


def _tokens(config: VATTConfig, modality: str) -> Iterator[Part]:
    ours, official = f"{modality}_tokens", _tower(config, modality)
    unified = official == UNIFIED
    if modality == "text" and config.text.tower == "linear":
        yield _copy(f"{ours}.embedding.weight", f"{official}/embedding/embeddings")
        yield from _dense(f"{ours}.projection", f"{official}/base_lm/conv1d")
        return
    agg = f"{NAMES[modality]}_agg_embedding" if unified else "agg_embedding"
    yield _copy(f"{ours}.agg", f"{official}/{agg}")
    if modality == "text":
        words = "raw_to_embeddings/text" if unified else "embedding"
        yield _copy(f"{ours}.embedding.weight", f"{official}/{words}/embeddings")
        pre = "pre_proj/text" if unified else "pre_proj"
        yield from _dense(f"{ours}.pre_projection", f"{official}/{pre}", bias=unified)
        if unified:
            yield from _positions(ours, f"{official}/pos_embedding_lookup/text", ("temporal",))
        return
    spectrogram = modality == "audio" and config.audio.spectrogram is not None
    kind = "spectrogram" if spectrogram else "video" if modality == "video" else "waveform"
    patching, axes = PATCHING[kind]
    if unified:
        patching = f"raw_to_embeddings/{modality}"
    yield from _dense(f"{ours}.patch_projection", f"{official}/{patching}")
    suffix = f"/{modality}" if unified else ""
    if config.arrangement == "agnostic":
        yield from _dense(f"{ours}.pre_projection", f"{official}/pre_proj{suffix}")
    yield from _positions(ours, f"{official}/pos_embedding_lookup{suffix}", axes)


def _positions(ours: str, official: str, axes: tuple[str, ...]) -> Iterator[Part]:
    for number, axis in enumerate(axes):
        table = f"{official}/{axis}_position_embeddings/embeddings"
        yield _copy(f"{ours}.positions.tables.{number}", table)
    yield from _layer_norm(f"{ours}.positions.norm", f"{official}/layernorm")


def _encoders(config: VATTConfig) -> Iterator[Part]:
    if config.arrangement == "agnostic":
        tower = _tower(config, config.modalities[0])
        yield from _encoder("encoders.shared", f"{tower}/tx", config.encoder)
        for modality in config.modalities:
            post = f"{tower}/post_proj" + (f"/{modality}" if tower == UNIFIED else "")
            yield from _dense(f"post_projections.{modality}", post)
        return
    for modality in config.modalities:
        ours, tower = f"encoders.{modality}", _tower(config, modality)
        encoder = config.tower(modality)
        if modality != "text":
            yield from _encoder(ours, f"{tower}/tx", encoder)
        elif config.text.tower == "t5":
            yield from _t5_encoder(ours, f"{tower}/base_lm", encoder.num_layers)


def _encoder(ours: str, official: str, encoder: EncoderConfig) -> Iterator[Part]:
    for number in range(encoder.num_layers):
        block, layer = f"{ours}.blocks.{number}", f"{official}/layers/{number}"
        yield from _layer_norm(f"{block}.attention_norm", f"{layer}/layer_norm")
        yield from _attention(block, f"{layer}/mha", encoder.bias)
        yield from _mlp(block, f"{layer}/feed_forward", encoder.bias)
    yield from _layer_norm(f"{ours}.final_norm", f"{official}/final_layer_norm")


def _t5_encoder(ours: str, official: str, num_layers: int) -> Iterator[Part]:
    first = f"{official}/layers/0/self_attention/attention/relative_attention_bias"
    yield _copy(f"{ours}.relative_bias.weight", f"{first}/embeddings")
    for number in range(num_layers):
        block, layer = f"{ours}.blocks.{number}", f"{official}/layers/{number}"
        yield _copy(f"{block}.attention_norm.weight", f"{layer}/self_attention/layer_norm/weight")
        yield from _attention(block, f"{layer}/self_attention/attention", bias=False)
        yield from _mlp(block, f"{layer}/feed_forward", bias=False)
    yield _copy(f"{ours}.final_norm.weight", f"{official}/final_layer_norm/weight")


def _attention(block: str, official: str, bias: bool) -> Iterator[Part]:
    ours = f"{block}.attention"
    kernels = tuple(f"{official}/{name}/kernel" for name in "qkv")
    yield Part(f"{ours}.query_key_value.weight", kernels, is_kernel=True)
    if bias:
        biases = tuple(f"{official}/{name}/bias" for name in "qkv")
        yield Part(f"{ours}.query_key_value.bias", biases, is_kernel=False)
    yield from _dense(f"{ours}.output", f"{official}/o", bias=bias)


def _mlp(block: str, official: str, bias: bool) -> Iterator[Part]:
    yield from _layer_norm(f"{block}.mlp_norm", f"{official}/layer_norm")
    yield from _dense(f"{block}.mlp.inner", f"{official}/mlp/wi", bias=bias)
    yield from _dense(f"{block}.mlp.outer", f"{official}/mlp/wo", bias=bias)


def _fac_head(config: VATTConfig) -> Iterator[Part]:
    yield from _dense("head.video_hidden.linear", f"{HEAD}/vid_to_hid", bias=False)
    yield from _batch_norm("head.video_hidden.batch_norm", f"{HEAD}/hid_to_va/pre_bn")
    yield from _normed("head.video_va", f"{HEAD}/hid_to_va")
    yield from _normed("head.va_vt", f"{HEAD}/va_to_vat")
    yield from _dense("head.audio_va.linear", f"{HEAD}/aud_to_va")
    yield from _dense("head.text_vt.linear", f"{HEAD}/txt_to_vat")


def _joint_head(config: VATTConfig) -> Iterator[Part]:
    for modality in config.modalities:
        yield from _normed(f"head.joint.{modality}", f"{HEAD}/{NAMES[modality]}_to_vat")


def _normed(ours: str, official: str) -> Iterator[Part]:
    yield from _dense(f"{ours}.linear", f"{official}/dense", bias=False)
    yield from _batch_norm(f"{ours}.batch_norm", f"{official}/bn")
