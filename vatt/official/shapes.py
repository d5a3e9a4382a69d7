"""Official settings of a model, derived from the shapes of its variables.

The number of heads follows from T5's bias, which has one column per head. If no tower has it, heads
are assumed to be 64 wide.
"""

import re
from collections.abc import Mapping
from typing import Any

from vatt.errors import ConversionError
from vatt.official.names import CLASSIFIER, FINE_TUNED, HEAD, PRETRAINED, ROOT, SLOT, UNIFIED

D_KV = 64  # of every published model [P, Table 7]
Shapes = Mapping[str, tuple[int, ...]]


def settings_of_variables(shapes: Shapes) -> dict[str, Any]:
    """Official settings, as far as the shapes of variables determine them.

    Args:
        shapes: Shapes by name, without the suffix.

    Raises:
        ConversionError: these are not the variables of a VATT.
    """
    try:
        if f"{CLASSIFIER}/kernel" in shapes or _any(shapes, f"{FINE_TUNED}/"):
            return _single_tower(shapes)
        head = {"head_config": {"bridge": [_head(shapes)]}}
        if _any(shapes, UNIFIED):
            kwargs = _unified_tower(shapes)
            backbone = {"unified_backbone": "ut_base", "unified_model_kwargs": kwargs}
            return {"backbone_config": backbone, **head}
        backbone = {}
        for modality, (kind, kwargs) in {
            "video": _media_tower(f"{PRETRAINED}/vid_backbone/_base", shapes),
            "audio": _media_tower(f"{PRETRAINED}/aud_backbone/_base", shapes),
            "text": _text_tower(shapes),
        }.items():
            backbone |= {f"{modality}_backbone": kind, f"{modality}_model_kwargs": kwargs}
        return {"backbone_config": backbone, **head}
    except KeyError as error:
        some = sorted(name for name in shapes if SLOT not in name)[:3]
        raise ConversionError(
            f"this is no checkpoint of VATT: it has no {error.args[0]}, but {some} and "
            f"{len(shapes)} variables in all (expected names below {ROOT})"
        ) from error


def _any(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _single_tower(shapes: Shapes) -> dict[str, Any]:
    kind, kwargs = _media_tower(FINE_TUNED, shapes)
    for name in ("pre", "post"):
        kwargs[f"{name}_projection"] = f"{FINE_TUNED}/{name}_proj/kernel" in shapes
    if kwargs["post_projection"]:
        kwargs["d_post_proj"] = shapes[f"{FINE_TUNED}/post_proj/kernel"][1]
    if f"{CLASSIFIER}/kernel" in shapes:
        kwargs["num_classes"] = shapes[f"{CLASSIFIER}/kernel"][1]
    return {"name": kind, **kwargs}


def _media_tower(prefix: str, shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """Kind and settings of a video, waveform or spectrogram tower."""
    positions = f"{prefix}/pos_embedding_lookup/{{}}_position_embeddings/embeddings"
    kwargs = _encoder(f"{prefix}/tx", "mha", shapes)
    kwargs["max_temporal_buckets"] = shapes[positions.format("temporal")][0]
    if f"{prefix}/voxel_to_patch/kernel" in shapes:
        time, height = shapes[f"{prefix}/voxel_to_patch/kernel"][:2]
        for axis in ("vertical", "horizontal"):
            kwargs[f"max_{axis}_buckets"] = shapes[positions.format(axis)][0]
        return "vit_base", {**kwargs, "temporal_patch_size": time, "spatial_patch_size": height}
    if f"{prefix}/spectrum_to_patch/kernel" in shapes:
        time, mel = shapes[f"{prefix}/spectrum_to_patch/kernel"][:2]
        kwargs["max_spectoral_buckets"] = shapes[positions.format("spectoral")][0]
        return "spt_base", {**kwargs, "temporal_patch_size": time, "spectoral_patch_size": mel}
    kwargs["temporal_patch_size"] = shapes[f"{prefix}/wave_to_patch/kernel"][0]
    return "wat_base", kwargs


def _text_tower(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    prefix = f"{PRETRAINED}/txt_backbone"
    vocab_size, d_embedding = shapes[f"{prefix}/embedding/embeddings"]
    words = {"vocab_size": vocab_size, "d_embedding": d_embedding}
    if f"{prefix}/base_lm/conv1d/kernel" in shapes:
        return "linear", {**words, "d_model": shapes[f"{prefix}/base_lm/conv1d/kernel"][-1]}
    attention = f"{prefix}/base_lm/layers/0/self_attention/attention"
    buckets, num_heads = shapes[f"{attention}/relative_attention_bias/embeddings"]
    kwargs = _encoder(f"{prefix}/base_lm", "self_attention/attention", shapes, num_heads)
    kwargs["d_pre_proj"] = kwargs["d_model"]
    return "t5_small", {**words, **kwargs, "num_relative_buckets": buckets}


def _unified_tower(shapes: Shapes) -> dict[str, Any]:
    positions = f"{UNIFIED}/pos_embedding_lookup/{{}}_position_embeddings/embeddings"
    time, height = shapes[f"{UNIFIED}/raw_to_embeddings/video/kernel"][:2]
    vocab_size, d_embedding = shapes[f"{UNIFIED}/raw_to_embeddings/text/embeddings"]
    return {
        **_encoder(f"{UNIFIED}/tx", "mha", shapes),
        "vid_temporal_patch_size": time,
        "vid_spatial_patch_size": height,
        "aud_temporal_patch_size": shapes[f"{UNIFIED}/raw_to_embeddings/audio/kernel"][0],
        "txt_vocab_size": vocab_size,
        "txt_embedding_dim": d_embedding,
        "max_vid_temporal_buckets": shapes[positions.format("video/temporal")][0],
        "max_vid_spatial_buckets": shapes[positions.format("video/vertical")][0],
        "max_aud_temporal_buckets": shapes[positions.format("audio/temporal")][0],
        "max_txt_temporal_buckets": shapes[positions.format("text/temporal")][0],
        "d_post_proj": shapes[f"{UNIFIED}/post_proj/video/kernel"][1],
    }


def _encoder(
    prefix: str, attention: str, shapes: Shapes, num_heads: int | None = None
) -> dict[str, Any]:
    """Sizes of the encoder below `prefix`."""
    layers = [
        int(match[1]) for name in shapes if (match := re.match(rf"{prefix}/layers/(\d+)/", name))
    ]
    first = f"{prefix}/layers/0"
    d_model, width = shapes[f"{first}/{attention}/q/kernel"]
    if num_heads is None and width % D_KV:
        raise ConversionError(
            f"the attention below {prefix} is {width} wide, no multiple of {D_KV} per head as in "
            "every published model: give the official configuration with --settings FILE.json"
        )
    num_heads = num_heads or width // D_KV
    return {
        "num_layers": max(layers) + 1,
        "d_model": d_model,
        "d_ff": shapes[f"{first}/feed_forward/mlp/wi/kernel"][1],
        "num_heads": num_heads,
        "d_kv": width // num_heads,
        "use_bias": f"{first}/{attention}/q/bias" in shapes,
    }


def _head(shapes: Shapes) -> dict[str, Any]:
    if f"{HEAD}/vid_to_vat/dense/kernel" in shapes:
        name, kernels = "mlp_joint", ("vid_to_vat/dense", "aud_to_vat/dense", "txt_to_vat/dense")
    else:
        name, kernels = "mlp_fac", ("vid_to_hid", "aud_to_va", "txt_to_vat")
    parts = ("vid_to_aud_txt_kwargs", "aud_to_vid_txt_kwargs", "txt_to_vid_aud_kwargs")
    widths = {
        part: {"d_model": shapes[f"{HEAD}/{kernel}/kernel"][1]}
        for part, kernel in zip(parts, kernels, strict=True)
    }
    return {"name": name, **widths}
