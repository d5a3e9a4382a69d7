"""Settings of open models, read from their own files: clips, sound and text that they take."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from vatt.config.geometry import MODALITIES, AudioConfig, TextConfig, VideoConfig
from vatt.config.model import HeadConfig
from vatt.config.open_model import OpenModelConfig, TowersConfig
from vatt.encoders.frames import FRAMES
from vatt.encoders.pe_av import FRAME_RATE, WINDOW_SECONDS
from vatt.encoders.transformers_loading import load_transformers
from vatt.errors import CheckpointError, UserError
from vatt.models.hub import download, local_path
from vatt.open_models.tokenizer import PretrainedTokenizer

# Everything but the weights, which transformers itself chooses and downloads.
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
KINDS = ("clip", "siglip", "siglip2", "clap", "pe_audio_video")  # that can be fine-tuned
MOST_WORDS = 77  # of a caption by default; longer captions cost memory
VIDEOMAE_RATE = 7.5  # every fourth frame of 30 frames/s (Tong et al., 2022, appendix)
AST_HOP_SECONDS = 0.010


@lru_cache(maxsize=8)  # the Hub is asked once
def local_files(source: str) -> Path:
    """Folder with the files of a model other than its weights.

    Raises:
        UserError: there is no such folder, or the Hub has no such model.
    """
    try:
        folder = local_path(source) or download(source, None, SETTINGS)
    except CheckpointError as error:
        raise UserError(f"init_from: {error}") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is not a folder of a transformers model: it has no config.json")
    return folder


def read_architecture(source: str) -> Any:
    """Configuration of a transformers model, a `PretrainedConfig`.

    Raises:
        UserError: transformers does not know the model.
    """
    folder = local_files(source)
    try:
        return load_transformers().AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"transformers cannot read {folder}/config.json: {reason}") from error


def read_processor(source: str, part: str) -> dict[str, Any]:
    """Settings of a part of a model's processor; empty if it has none.

    Args:
        source: Folder or hub id.
        part: `image_processor`, `video_processor` or `feature_extractor`.
    """
    folder = local_files(source)
    names = ["video_preprocessor_config.json"] if part == "video_processor" else []
    for name in ["processor_config.json", *names, "preprocessor_config.json"]:
        file = folder / name
        if not file.is_file():
            continue
        settings = json.loads(file.read_text(encoding="utf-8"))
        if part in settings:
            return dict(settings[part])
        if name != "processor_config.json":
            return dict(settings)
    return {}


def read_settings(
    source: str | None = None, towers: TowersConfig | None = None, **changes: Any
) -> OpenModelConfig:
    """Settings of a whole model or of towers, with the clips that they are made for.

    Args:
        source: Folder or hub id of a whole model. None: `towers`.
        towers: Encoders of single modalities.
        changes: Other settings of `OpenModelConfig`.

    Raises:
        UserError: there is no such model, or it is of a kind that cannot be fine-tuned.

    Example:
        >>> read_settings("openai/clip-vit-base-patch32").modalities
        ('video', 'text')
    """
    if source is None:
        if towers is None:
            raise UserError("give a model to fine-tune: --model.init_args.init_from")
        changes.setdefault("head", HeadConfig(kind="joint"))
        parts = {name: _tower_part(name, one) for name, one in towers.sources.items()}
    else:
        parts = _parts(source)
    modalities = tuple(name for name in MODALITIES if name in parts)
    return OpenModelConfig(
        **{"source": source, "towers": towers, "modalities": modalities, **parts, **changes}
    )


def _parts(source: str) -> dict[str, Any]:
    """Geometry of each modality of a whole model."""
    config = read_architecture(source)
    kind = config.model_type
    if kind not in KINDS:
        raise UserError(
            f"{source} is a model of the kind {kind}, and whole models that can be fine-tuned are "
            f"{', '.join(KINDS)}: give it as one of model.towers, or another model"
        )
    if kind == "clap":
        return {"audio": _sound(source), "text": _text(source, config.text_config)}
    if kind == "pe_audio_video":
        shown = read_processor(source, "video_processor")
        sound = _sound(source, hop=read_processor(source, "feature_extractor").get("hop_length"))
        size = _size(shown.get("size"))
        rate = float(shown.get("fps") or FRAME_RATE)
        frames = round(WINDOW_SECONDS * rate)
        if shown.get("do_sample_frames") and shown.get("num_frames"):
            frames = int(shown["num_frames"])
            rate = frames / WINDOW_SECONDS
        return {
            "video": _pictures(frames, rate, size),
            "audio": sound,
            "text": _text(source, config.text_config),
        }
    size = picture_size(source, config.vision_config)
    return {
        "video": _pictures(FRAMES.num_frames, FRAMES.frame_rate, size),
        "text": _text(source, config.text_config, fixed=kind.startswith("siglip")),
    }


def _tower_part(modality: str, source: str) -> Any:
    config = read_architecture(source)
    if modality == "audio":
        return _sound(source)
    if modality == "text":
        return _text(source, getattr(config, "text_config", config))
    config = getattr(config, "vision_config", config)
    frames = getattr(config, "num_frames", None)
    rate = FRAMES.frame_rate if frames is None else VIDEOMAE_RATE
    return _pictures(frames or FRAMES.num_frames, rate, picture_size(source, config))


def picture_size(source: str, vision: Any) -> int:
    """Height and width in pixels of the pictures of a vision encoder."""
    if vision.model_type == "siglip2_vision_model":  # any shape of at most so many patches
        pictures = read_processor(source, "image_processor")
        return int(pictures.get("max_num_patches", 256) ** 0.5) * int(vision.patch_size)
    return _size(vision.image_size)


def _size(value: Any) -> int:
    """Size of a square: a number, a pair, or a mapping of a processor."""
    if isinstance(value, dict):
        value = next(iter(value.values()), None)
    if isinstance(value, list | tuple):
        value = value[0]
    if not isinstance(value, int):
        raise UserError(f"the model names no size of its pictures ({value!r})")
    return value


def _pictures(frames: int, rate: float, size: int) -> VideoConfig:
    # one token per frame: only the geometry of clips counts here
    return VideoConfig(
        num_frames=frames, frame_rate=rate, image_size=size, patch_size=(1, size, size)
    )


def _sound(source: str, hop: int | None = None) -> AudioConfig:
    settings = read_processor(source, "feature_extractor")
    rate = int(settings.get("sampling_rate", 16_000))
    seconds = settings.get("max_length_s")
    if seconds is None and settings.get("feature_extractor_type") == "ASTFeatureExtractor":
        seconds = settings["max_length"] * AST_HOP_SECONDS
    count = round((seconds or WINDOW_SECONDS) * rate)
    count -= count % (hop or 1)
    return AudioConfig(sample_rate=rate, num_samples=count, patch_size=count)


def _text(source: str, config: Any, *, fixed: bool = False) -> TextConfig:
    tokenizer = PretrainedTokenizer.from_source(source)
    longest = int(config.max_position_embeddings)
    if not fixed:
        # position 0 of RoBERTa's comes after its padding
        offset = 2 if config.model_type in ("roberta", "xlm-roberta", "clap_text_model") else 0
        longest = min(longest - offset, tokenizer.longest, MOST_WORDS)
    return TextConfig(vocab_size=tokenizer.vocab_size, max_words=longest)


def architecture_of(source: str) -> dict[str, Any]:
    """Architecture of a model as plain containers, without what does not change the weights."""
    values = read_architecture(source).to_dict()
    volatile = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    return {name: value for name, value in values.items() if name not in volatile}
