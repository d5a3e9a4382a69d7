"""The text of a model card, section by section, in Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vatt.config.model import VATTConfig
from vatt.config.spaces import output_widths, spaces_of
from vatt.models.training_facts import TrainingFacts
from vatt.network.model import VATT

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PAPER = "[VATT](https://arxiv.org/abs/2104.11178) (Akbari et al., NeurIPS 2021)"
WHAT_FILES_ARE = {
    "config.json": "the model as data",
    "model.safetensors": "its weights, float32",
    "tokenizer.json": "words → ids, for the `tokenizers` library",
    "preprocess.json": "all that comes before the network: rates, sizes, crops, names and shapes",
    ".onnx": "a tower for ONNX runtimes: raw input → features and embeddings",
    ".onnx.data": "its weights",
    ".pt2": "the same for `torch.export.load`",
}
Rows = Iterable[tuple[str, object]]


def card_body(
    folder: Path,
    model: VATT,
    name: str,
    facts: TrainingFacts,
    measured: Sequence["EvalResult"],
    licence: str | None,
) -> str:
    """The card without its head.

    Args:
        folder: Model folder, whose files the card describes.
        model: Model in the folder.
        name: Title of the card.
        facts: Facts of the training.
        measured: Results of `vatt evaluate`.
        licence: Licence, as in the head of the card.
    """
    config = model.config
    kind = "classifier" if config.classifier is not None else "model"
    sections = [
        f"# {name}\n\nA {'-'.join(config.modalities)} {kind}, {PAPER}, made with the PyTorch "
        "package `vatt`.",
        _section("Licence", _licence(licence)),
        _section("Use", _use(folder, config)),
        _section("Without vatt", _without_vatt(folder, config)),
        _section("Model", _table(_geometry(model))),
        _section("Training", _training(facts)),
        _section("Evaluation", _evaluation(facts, measured)),
        _section("Limits", _limits(folder, config)),
        _section("Files", _table(_files(folder))),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _table(rows: Rows) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows if value not in (None, "", [])]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _licence(licence: str | None) -> str:
    if licence is not None:
        return f"`{licence}`, of the weights. The code of `vatt` is under Apache-2.0."
    return (
        "**Not chosen yet.** The owner of the weights must choose one before publishing them: "
        "`license:` in the head of this file (or `vatt export --licence`)."
    )


def _use(folder: Path, config: VATTConfig) -> str:
    if not (folder / "config.json").is_file():
        return ""
    lines = ["import vatt", ""]
    if config.classifier is not None:
        lines = ["import vatt", "from vatt.preprocess import read_view", "", *_classify(config)]
    else:
        lines += [
            'fx = vatt.FeatureExtractor.from_pretrained(".")  # path of this folder, or org/name',
            *_encode(config, (folder / "tokenizer.json").is_file()),
        ]
    return "\n".join(["```python", *lines, "```"])


def _classify(config: VATTConfig) -> list[str]:
    assert config.classifier is not None
    modality = config.classifier.modality
    asked = ", ".join(
        f"{name}=model.config.{name}" if name == modality else f"{name}=None"
        for name in ("video", "audio")
    )
    return [
        'model = vatt.load_model(".")  # path of this folder',
        f'clip = read_view("clip.mp4", start_seconds=0.0, {asked})',
        f"logits = model(vatt.Batch({modality}=clip.{modality}[None])).logits  "
        f"# [1, {config.classifier.num_classes}]",
    ]


def _encode(config: VATTConfig, has_tokenizer: bool) -> list[str]:
    words = "text" in config.modalities and has_tokenizer
    lines = []
    if "video" in config.modalities:
        lines.append('video = fx.encode_video("clip.mp4")  # [1, D] of unit length')
    if "audio" in config.modalities:
        lines.append('audio = fx.encode_audio("clip.mp4")')
    if words:
        lines.append('text = fx.encode_text(["a dog barks"])')
    if words and config.head is not None:
        lines.append('cosines = fx.similarity(text=["a dog barks"], video="clip.mp4")')
    elif "audio" in config.modalities and config.head is not None:
        lines.append('cosines = fx.similarity(audio="clip.mp4", video="clip.mp4")')
    return lines


def _without_vatt(folder: Path, config: VATTConfig) -> str:
    exported = [name for name in config.modalities if (folder / f"{name}.onnx").is_file()]
    if not exported:
        return ""
    name = exported[0]
    lines = [
        "import json",
        "",
        "import numpy as np",
        "import onnxruntime",
        "",
        'with open("preprocess.json") as file:',
        f'    rules = json.load(file)["{name}"]  # what to do before, and what comes out',
        f'session = onnxruntime.InferenceSession("{name}.onnx")',
        'shape = [2 if isinstance(size, str) else size for size in rules["input"]["shape"]]',
        'raw = np.ones(shape, rules["input"]["dtype"])  # here: your clips, as the rules say',
        'outputs = dict(zip(rules["outputs"], session.run(None, {"' + name + '": raw})))',
    ]
    return "\n".join(["```python", *lines, "```"])


def _geometry(model: VATT) -> Rows:
    config = model.config
    video, audio, text = config.video, config.audio, config.text
    yield "arrangement", f"modality-{config.arrangement}"
    yield "parameters", f"{sum(p.numel() for p in model.parameters()):,}"
    if "video" in config.modalities:
        size, patch = video.image_size, "×".join(map(str, video.patch_size))
        yield (
            "video",
            f"{video.num_frames} frames at {video.frame_rate:g} per second "
            f"({video.duration_seconds:g} s), {size}×{size}, patches {patch}, "
            f"{video.num_tokens} tokens",
        )
    if "audio" in config.modalities:
        what = "waveform" if audio.spectrogram is None else "log-mel spectrogram"
        yield (
            "audio",
            f"{what}, {audio.num_samples:,} samples at {audio.sample_rate:,} Hz "
            f"({audio.duration_seconds:g} s), {audio.num_tokens} tokens",
        )
    if "text" in config.modalities:
        yield "text", f"{text.max_words} words of a vocabulary of {text.vocab_size:,}"
    for name in config.modalities:
        yield f"{name} encoder", _encoder(config, name)
    for name in config.modalities:
        widths = ", ".join(f"{out} {width}" for out, width in output_widths(config, name).items())
        yield f"{name} outputs", widths


def _encoder(config: VATTConfig, modality: str) -> str:
    if modality == "text" and config.arrangement == "specific" and config.text.tower == "linear":
        return "linear: maximum over words"
    tower = config.tower(modality)
    several = config.arrangement == "agnostic" and len(config.modalities) > 1
    shared = ", shared by all" if several else ""
    return f"{tower.num_layers} layers of width {tower.d_model}, {tower.num_heads} heads{shared}"


def _training(facts: TrainingFacts) -> str:
    if not facts:
        return (
            "Not known: the model came without its run. `vatt export RUN`, or `--run RUN`, fills "
            "in data, steps and settings."
        )
    sets = [
        f"`{one['name']}`" + (f" ({one['clips']:,} clips)" if "clips" in one else "")
        for one in facts.get("data", [])
    ]
    versions = [f"{name} {version}" for name, version in facts.get("versions", {}).items()]
    rows: list[tuple[str, object]] = [
        ("data", ", ".join(sets)),
        ("configuration", ", ".join(facts.get("configs", []))),
        ("started from", facts.get("started_from")),
        ("steps", f"{facts['steps']:,}" if "steps" in facts else None),
        ("batch size", facts.get("batch_size")),
        ("optimiser", facts.get("optimizer")),
        ("learning rate", facts.get("learning_rate")),
        ("precision", facts.get("precision")),
        ("seed", facts.get("seed")),
        ("devices", ", ".join(facts.get("devices", []))),
        ("versions", ", ".join(versions)),
        ("commit", facts.get("git_commit")),
    ]
    absent = [name for name, value in rows if value in (None, "")]
    left_out = [name for name in absent if name not in ("started from", "precision")]
    note = f"\n\nNot recorded by the run: {', '.join(left_out)}." if left_out else ""
    return _table(rows) + note


def _evaluation(facts: TrainingFacts, measured: Sequence["EvalResult"]) -> str:
    parts = []
    if validation := facts.get("validation"):
        where = facts.get("validation_set", "its validation set")
        rows = ((name, f"{value:.4g}") for name, value in validation.items())
        step = facts.get("validation_step", 0)
        parts.append(f"By the run itself, after {step:,} steps, on `{where}`:\n\n{_table(rows)}")
    for task, data_set in dict.fromkeys((one.task_type, one.dataset_name) for one in measured):
        rows = (
            (str(one.metric_name), f"{one.metric_value:.4g}")
            for one in measured
            if (one.task_type, one.dataset_name) == (task, data_set)
        )
        parts.append(f"`vatt evaluate {task}` on {data_set}:\n\n{_table(rows)}")
    return "\n\n".join(parts) or "None is recorded: `vatt evaluate`, then `--results results.json`."


def _limits(folder: Path, config: VATTConfig) -> str:
    lines = [
        "It knows what its training data show; what these are like, and whom they favour, was "
        "not examined here."
    ]
    windows = [
        f"{part.duration_seconds:g} s of {name}"
        for name, part in (("video", config.video), ("audio", config.audio))
        if name in config.modalities
    ]
    if windows:
        lines.append(f"It sees {' and '.join(windows)} at a time; longer media are cut in windows.")
    if "text" in config.modalities:
        lines.append(
            f"Of a text the first {config.text.max_words} words count; those that "
            "`tokenizer.json` does not know are all the same to it."
        )
        if not (folder / "tokenizer.json").is_file():
            lines.append(
                "**It came without a `tokenizer.json`**: what its word ids stand for is not known "
                "here, texts cannot be encoded."
            )
    if "vt" in spaces_of(config, "audio"):
        lines.append(
            "Sound reaches the space of text by the video head's last step; the two were never "
            "trained against each other."
        )
    if config.classifier is not None:
        lines.append("What its classes are called is not in this folder: add it to this card.")
    return "\n".join(f"- {line}" for line in lines)


def _files(folder: Path) -> Rows:
    for path in sorted(folder.iterdir()):
        suffix = "".join(path.suffixes)
        what = WHAT_FILES_ARE.get(path.name, WHAT_FILES_ARE.get(suffix))
        if what is not None:
            yield f"`{path.name}`", what
