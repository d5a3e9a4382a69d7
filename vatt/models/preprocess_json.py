"""Description of a model's preprocessing as plain values: `preprocess.json`.

It is written with a model for use without vatt. It is derived from the model's configuration, and
vatt never reads it: only `config.json` counts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vatt.config.geometry import MODALITIES, AudioConfig, TextConfig, VideoConfig
from vatt.config.model import VATTConfig
from vatt.config.spaces import output_widths, spaces_of
from vatt.preprocess.vocabulary import PADDING_ID
from vatt.system.files import write_atomically

FORMAT_VERSION = 1  # of the file
BATCH = "batch"  # the axis whose length is free


def write_preprocess_json(
    folder: Path,
    config: VATTConfig,
    *,
    has_tokenizer: bool,
    files: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Writes `preprocess.json`: rules, `input`, `outputs` and `files` by modality.

    Args:
        folder: Model folder.
        config: Configuration of the model.
        has_tokenizer: Whether there is a `tokenizer.json` in the folder.
        files: Names of exported files by modality and format.
    """
    rules = {
        "video": _video_rules(config.video),
        "audio": _audio_rules(config.audio),
        "text": _text_rules(config.text, has_tokenizer),
    }
    towers = {name: rules[name] | _outputs(config, name) for name in config.modalities}
    for name, names in (files or {}).items():
        towers[name] |= {"files": names} if names else {}
    sharing = {
        space: [name for name in MODALITIES if space in spaces_of(config, name)]
        for space in ("va", "vt", "joint")
    }
    constants = {
        "format_version": FORMAT_VERSION,
        **towers,
        # modalities whose embeddings of that name may be compared
        "spaces": {space: names for space, names in sharing.items() if names},
        "outputs_normalized": False,
        "compare_by": "cosine: divide each embedding by its length, then take the inner product",
    }
    text = json.dumps(constants, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "preprocess.json", text.encode())


def _outputs(config: VATTConfig, modality: str) -> dict[str, Any]:
    outputs: dict[str, dict[str, Any]] = {
        name: {"dtype": "float32", "shape": [BATCH, width]}
        for name, width in output_widths(config, modality).items()
    }
    if "logits" in outputs and config.classifier is not None:
        several = config.classifier.multi_label
        outputs["logits"]["probabilities"] = "sigmoid" if several else "softmax"
    return {"outputs": outputs}


def _video_rules(video: VideoConfig) -> dict[str, Any]:
    size = video.image_size
    return {
        "frame_rate": video.frame_rate,  # pictures per second
        "num_frames": video.num_frames,
        "window_seconds": video.duration_seconds,
        "image_size": size,
        "frames": "frame i is the last one shown at or before start + i / frame_rate; past the end "
        "the last one repeats; an image is repeated num_frames times",
        "rotation": "as displayed, with square pixels",
        "resize": "shorter side to image_size, aspect kept, the other side even, area averaging",
        "crop": "the central square of image_size",
        "color": "RGB, 0 to 255; scaling to [-1, 1] is inside the graph",
        "input": {
            "name": "video",
            "dtype": "uint8",
            "shape": [BATCH, video.num_frames, size, size, 3],
            "axes": "batch, frames, height, width, RGB",
        },
    }


def _audio_rules(audio: AudioConfig) -> dict[str, Any]:
    shown = "log-mel spectrogram" if audio.spectrogram is not None else "waveform"
    return {
        "sample_rate": audio.sample_rate,  # in Hz
        "num_samples": audio.num_samples,
        "window_seconds": audio.duration_seconds,
        "channels": "mono: the mean of left and right",
        "resampling": "FFmpeg's libswresample",
        "range": "-1 to 1; no other scaling",
        "padding": "zeros past the end",
        "sees": f"{shown}, made inside the graph" if audio.spectrogram is not None else shown,
        "input": {
            "name": "audio",
            "dtype": "float32",
            "shape": [BATCH, audio.num_samples],
            "axes": "batch, samples",
        },
    }


def _text_rules(text: TextConfig, has_tokenizer: bool) -> dict[str, Any]:
    return {
        "tokenizer": "tokenizer.json" if has_tokenizer else None,
        "max_words": text.max_words,
        "vocab_size": text.vocab_size,
        "padding_id": PADDING_ID,
        "padding": "padding_id behind the words, up to max_words; longer texts are cut; no special "
        "tokens are added",
        "input": {
            "name": "text",
            "dtype": "int64",
            "shape": [BATCH, text.max_words],
            "axes": "batch, word ids",
        },
    }
