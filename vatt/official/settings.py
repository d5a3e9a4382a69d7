"""Models of the official code as configurations of ours.

Official settings are the JSON of its configuration classes, for a whole experiment, a pre-training
model or one tower. They contain facts that a checkpoint lacks, such as heads and dropout. Source:
google-research/vatt `configs/*.py`, `modeling/**`, and the variables of its checkpoints.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vatt.config.geometry import AudioConfig, SpectrogramConfig, TextConfig, VideoConfig
from vatt.config.model import ClassifierConfig, EncoderConfig, HeadConfig, VATTConfig
from vatt.config.presets import FINE_TUNING_FRAME_RATE, FINE_TUNING_SAMPLE_RATE
from vatt.errors import ConversionError

Settings = Mapping[str, Any]

# Defaults of the configuration classes, which settings of a model change by name.
SIZES = {
    "small": {"num_layers": 6, "d_model": 512, "d_ff": 2048, "num_heads": 8},
    "base": {"num_layers": 12, "d_model": 768, "d_ff": 3072, "num_heads": 12},
    "medium": {"num_layers": 12, "d_model": 1024, "d_ff": 4096, "num_heads": 16},
    "large": {"num_layers": 24, "d_model": 1024, "d_ff": 4096, "num_heads": 16},
    "xlarge": {"num_layers": 24, "d_model": 1536, "d_ff": 4096, "num_heads": 24},
}
COMMON: Settings = {
    "d_kv": 64,
    "dropout_rate": 0.1,
    "use_bias": True,
    "random_patch_sampling": True,
    "patch_sampling_rate": 0.5,
    "pre_projection": False,
    "post_projection": False,
    "d_post_proj": 1024,
    "num_classes": None,
}
TOWERS: dict[str, Settings] = {
    "vit": {
        "temporal_patch_size": 4,
        "spatial_patch_size": 16,
        "max_temporal_buckets": 8,
        "max_vertical_buckets": 14,
        "max_horizontal_buckets": 14,
        "cls_dropout_rate": 0.5,
    },
    "wat": {"temporal_patch_size": 128, "max_temporal_buckets": 1200, "cls_dropout_rate": 0.0},
    "spt": {
        "temporal_patch_size": 16,
        "spectoral_patch_size": 5,
        "max_temporal_buckets": 9,
        "max_spectoral_buckets": 16,
        "use_bias": False,
        "random_patch_sampling": False,
        "cls_dropout_rate": 0.0,
    },
    "t5": {
        "d_embedding": 300,
        "vocab_size": 65_536,
        "num_relative_buckets": 32,
        "max_relative_distance": 64,
        "trainable_embeddings": False,
        "use_agg_token": True,
        "d_post_proj": None,
    },
    "linear": {
        "d_model": 2048,
        "d_embedding": 300,
        "vocab_size": 65_536,
        "trainable_embeddings": False,
        "use_agg_token": False,
        "d_pre_proj": None,
        "d_post_proj": None,
        "activation": None,
    },
    "ut": {
        "vid_temporal_patch_size": 4,
        "vid_spatial_patch_size": 16,
        "aud_temporal_patch_size": 128,
        "txt_vocab_size": 65_536,
        "txt_embedding_dim": 300,
        "txt_embedding_trainable": False,
        "max_vid_temporal_buckets": 8,
        "max_vid_spatial_buckets": 14,
        "max_aud_temporal_buckets": 1200,
        "max_txt_temporal_buckets": 16,
        "cls_dropout_rate": 0.2,
    },
}
# Values of settings that no published model changes; ours has these values only.
ONLY: Settings = {
    "pre_norm": True,
    "activation": "gelu",
    "post_proj_activation": "gelu",
    "layer_norm_epsilon": 1e-6,
    "use_masking": False,
}
BATCH_NORM: Settings = {"epsilon": 1e-5, "momentum": 0.9, "scale": True}
NAMES = {"video": "vid", "audio": "aud", "text": "txt"}  # in its variables and settings


def config_of_settings(settings: Settings) -> VATTConfig:
    """Our configuration of a model with official settings.

    Args:
        settings: Settings of an experiment (with `model_config`), of a pre-training model (with
            `backbone_config`) or of one tower, which is a classifier if it has `num_classes`.

    Raises:
        ConversionError: the model is not a VATT, or has parts that our models lack.
    """
    inner = settings.get("model_config") if isinstance(settings, Mapping) else None
    model = inner or settings
    if not isinstance(model, Mapping):
        kind = type(model).__name__
        raise ConversionError(f"official settings must be a JSON object, got {kind}")
    backbone = part(model, "backbone_config")
    if not backbone:
        return _classifier_config(complete(model.get("name"), model))
    head = _head_config(part(model, "head_config"))
    if "unified_backbone" in backbone:
        kwargs = part(backbone, "unified_model_kwargs")
        return replace(_unified_config(complete(backbone["unified_backbone"], kwargs)), head=head)
    video, audio, text = (
        complete(backbone.get(f"{name}_backbone"), part(backbone, f"{name}_model_kwargs"))
        for name in NAMES
    )
    return VATTConfig(
        arrangement="specific",
        video=_video(video),
        audio=_audio(audio),
        text=_text(text),
        video_encoder=_encoder(video),
        audio_encoder=_encoder(audio),
        text_encoder=None if text["kind"] == "linear" else _encoder(text),
        head=head,
        drop_token=_drop_token(video),
        audio_drop_token=_drop_token(audio),
    )


def complete(name: object, kwargs: Settings) -> dict[str, Any]:
    """All settings of a tower such as `vit_base`: its defaults, updated by `kwargs`.

    Raises:
        ConversionError: the tower is unknown, or our models lack a setting.
    """
    kind, _, size = str(name).lower().partition("_")
    if kind not in TOWERS or (kind != "linear" and size not in SIZES):
        kinds = ", ".join(f"{kind}_*" for kind in TOWERS if kind != "linear")
        raise ConversionError(f"no VATT tower is called {name!r}; there are {kinds} and linear")
    full = {**COMMON, **SIZES.get(size, {}), **TOWERS[kind], **kwargs, "kind": kind}
    if kind == "linear":
        wanted: Settings = {"d_pre_proj": None, "d_post_proj": None, "use_agg_token": False}
    elif kind == "t5":
        wanted = {**ONLY, "d_post_proj": None, "d_pre_proj": full["d_model"], "use_agg_token": True}
    else:
        wanted = {**ONLY, "temporal_patch_stride": full.get("temporal_patch_size")}
    _expect(str(name), full, wanted)
    for key, value in full.items():
        default = {**COMMON, **SIZES["base"], **TOWERS[kind]}.get(key)
        if isinstance(default, int) and type(value) is not type(default):
            raise ConversionError(f"{name}: {key} must be {default} or the like, got {value!r}")
    return full


def part(settings: Settings, key: str) -> Settings:
    """A nested object of the settings; empty if it is absent.

    Raises:
        ConversionError: the value is not an object.
    """
    value = settings.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConversionError(f"official settings: {key} must be an object, got {value!r}")
    return value


def _expect(where: str, settings: Settings, wanted: Settings) -> None:
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise ConversionError(
                f"{where}: {key} is {settings[key]!r}, this implementation has {value!r} only"
            )


def _encoder(tower: Settings) -> EncoderConfig:
    sizes = {key: tower[key] for key in ("num_layers", "d_model", "d_ff", "num_heads", "d_kv")}
    return EncoderConfig(
        **sizes, bias=tower["use_bias"] and tower["kind"] != "t5", dropout=tower["dropout_rate"]
    )


def _drop_token(tower: Settings) -> float:
    return 1 - tower["patch_sampling_rate"] if tower["random_patch_sampling"] else 0.0


def _video(tower: Settings) -> VideoConfig:
    time, space = tower["temporal_patch_size"], tower["spatial_patch_size"]
    grid = tuple(tower[f"max_{axis}_buckets"] for axis in ("temporal", "vertical", "horizontal"))
    return VideoConfig(
        num_frames=grid[0] * time,
        image_size=grid[1] * space,
        patch_size=(time, space, space),
        position_grid=grid if grid[1] != grid[2] else None,
    )


def _audio(tower: Settings) -> AudioConfig:
    time, buckets = tower["temporal_patch_size"], tower["max_temporal_buckets"]
    if tower["kind"] == "wat":
        return AudioConfig(num_samples=buckets * time, patch_size=time)
    mel = SpectrogramConfig(
        num_mels=tower["max_spectoral_buckets"] * tower["spectoral_patch_size"],
        patch_size=(time, tower["spectoral_patch_size"]),
        transposed_positions=True,
    )
    default = AudioConfig(spectrogram=mel)
    if default.grid[0] == buckets:  # 150 windows of 3.2 s fill 9 patches and more
        return default
    return AudioConfig(num_samples=buckets * time * mel.hop_samples, spectrogram=mel)


def _text(tower: Settings) -> TextConfig:
    values: dict[str, Any] = {
        "vocab_size": tower["vocab_size"],
        "d_embedding": tower["d_embedding"],
        "train_embedding": tower["trainable_embeddings"],
    }
    if tower["kind"] == "linear":
        return TextConfig(tower="linear", d_linear=tower["d_model"], **values)
    return TextConfig(
        relative_buckets=tower["num_relative_buckets"],
        relative_max_distance=tower["max_relative_distance"],
        **values,
    )


def _unified_config(tower: Settings) -> VATTConfig:
    time, space = tower["vid_temporal_patch_size"], tower["vid_spatial_patch_size"]
    patch = tower["aud_temporal_patch_size"]
    return VATTConfig(
        arrangement="agnostic",
        video=VideoConfig(
            num_frames=tower["max_vid_temporal_buckets"] * time,
            image_size=tower["max_vid_spatial_buckets"] * space,
            patch_size=(time, space, space),
        ),
        audio=AudioConfig(num_samples=tower["max_aud_temporal_buckets"] * patch, patch_size=patch),
        text=TextConfig(
            vocab_size=tower["txt_vocab_size"],
            d_embedding=tower["txt_embedding_dim"],
            train_embedding=tower["txt_embedding_trainable"],
            max_words=tower["max_txt_temporal_buckets"],
        ),
        encoder=_encoder(tower),
        drop_token=_drop_token(tower),
        d_post=tower["d_post_proj"],
    )


def _head_config(head: Settings) -> HeadConfig:
    bridges = head.get("bridge") or [{}]
    if not isinstance(bridges, list) or len(bridges) != 1 or not isinstance(bridges[0], Mapping):
        raise ConversionError(f"this implementation has one head, the settings have {bridges!r}")
    bridge = bridges[0]
    _expect("bn_config", part(bridge, "bn_config"), BATCH_NORM)
    widths = {
        name: part(bridge, name).get("d_model", default)
        for name, default in (
            ("vid_to_aud_txt_kwargs", 512),
            ("aud_to_vid_txt_kwargs", 512),
            ("txt_to_vid_aud_kwargs", 512 if bridge.get("name") == "mlp_joint" else 256),
        )
    }
    video, audio, text = widths.values()
    name = bridge.get("name", "mlp_fac")
    if name == "mlp_joint" and video == audio == text:
        return HeadConfig(kind="joint", d_joint=video)
    if name == "mlp_fac" and video == audio:
        return HeadConfig(kind="fac", d_va=video, d_vt=text)
    raise ConversionError(f"no head is called {name!r} with widths {widths}")


def _classifier_config(tower: Settings) -> VATTConfig:
    """One tower; between Dense layers, as fine-tuned from the agnostic model, or bare."""
    kind = tower["kind"]
    if kind not in ("vit", "wat", "spt"):
        raise ConversionError(f"a classifier stands on a vit, wat or spt tower, not on {kind}")
    if tower["pre_projection"] != tower["post_projection"]:
        raise ConversionError("pre_projection and post_projection come together or not at all")
    frame_rate, sample_rate = FINE_TUNING_FRAME_RATE, FINE_TUNING_SAMPLE_RATE
    modality: Literal["video", "audio"] = "video" if kind == "vit" else "audio"
    classifier = None
    if tower["num_classes"] is not None:
        classifier = ClassifierConfig(
            modality=modality,
            num_classes=tower["num_classes"],
            dropout=tower["cls_dropout_rate"],
            multi_label=modality == "audio",
        )
    return VATTConfig(
        modalities=(modality,),
        arrangement="agnostic" if tower["pre_projection"] else "specific",
        video=replace(_video(tower) if kind == "vit" else VideoConfig(), frame_rate=frame_rate),
        audio=replace(_audio(tower) if kind != "vit" else AudioConfig(), sample_rate=sample_rate),
        encoder=_encoder(tower),
        head=None,
        classifier=classifier,
        drop_token=0.0,
        d_post=tower["d_post_proj"],
    )
