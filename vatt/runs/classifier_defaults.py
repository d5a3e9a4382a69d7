"""Defaults of fine-tuning that depend on the pre-trained model and the annotations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vatt.config.model import VATTConfig
from vatt.config.presets import as_classifier
from vatt.errors import CheckpointError, UserError
from vatt.media.folder import is_sound
from vatt.models.checkpoint import read_config
from vatt.sets.annotations import read_annotations, read_classes
from vatt.training.finetune import FinetuneModule

CLASSIFIER = "model.init_args.model.classifier"
DATA = "datamodules.classification.ClassificationData"
MAX_PASSES = "run.max_passes"


@dataclass(frozen=True)
class LabelledSet:
    """Facts of the training files that an annotation file names.

    Args:
        num_files: Number of files, or of parts of files.
        has_pictures: Whether any file may have a picture, by its extension.
    """

    num_files: int
    has_pictures: bool


def training_set(command: str, given: Mapping[str, Any]) -> LabelledSet | None:
    """Facts of the training files of a fine-tuning run that depends on them; None for others.

    None, too, if there is no such annotation file, which the data module then refuses.

    Args:
        command: The subcommand.
        given: Values that the arguments set, by dotted key.

    Raises:
        UserError: the annotations cannot be read.
    """
    train, layout, fold = (given.get(f"data.init_args.{n}") for n in ("train", "layout", "fold"))
    depends = f"{CLASSIFIER}.modality" not in given or (command == "fit" and given.get(MAX_PASSES))
    is_own = given.get("data.class_path", DATA) == DATA  # users may read other annotations
    if not (depends and is_own and isinstance(train, str) and Path(train).exists()):
        return None
    if not _is_fine_tuning(given.get("model.class_path")):
        return None
    files = [
        one.names[0]
        for one in read_annotations(Path(train), layout or "csv", [])
        if fold is None or one.fold != fold
    ]
    return LabelledSet(len(files), not all(map(is_sound, files)))


def with_classifier(
    args: Sequence[str], given: Mapping[str, Any], files: LabelledSet | None = None
) -> list[str]:
    """Arguments of a fine-tuning run, preceded by defaults from its model and data.

    Sizes of tower and clips come from the initial model, and classes from the data. A classifier of
    files of sound reads sound, without dropout. Settings of the user come later and override them.

    Args:
        args: The subcommand and its arguments.
        given: Values that the arguments set, by dotted key.
        files: Facts of the training files. None: they may have pictures.

    Raises:
        UserError: the model does not exist, or the annotations cannot be read.
    """
    class_path = given.get("model.class_path")
    if not _is_fine_tuning(class_path):
        return list(args)
    default = "video" if files is None or files.has_pictures else "audio"
    modality = given.get(f"{CLASSIFIER}.modality", default)
    classifier: dict[str, Any] = {"modality": modality}
    if modality == "audio":
        classifier["dropout"] = 0.0  # [C]; that of video is the default
    data = {name: given.get(f"data.init_args.{name}") for name in ("train", "classes", "layout")}
    if f"{CLASSIFIER}.num_classes" not in given and isinstance(data["train"], str):
        path = None if data["classes"] is None else Path(data["classes"])
        classes = read_classes(path, Path(data["train"]), data["layout"] or "csv")
        classifier["num_classes"] = len(classes)
    model = {**_tower_of(args, given, modality).to_dict(), "classifier": classifier}
    start = {"model": {"class_path": class_path, "init_args": {"model": model}}}
    return [args[0], f"--config={json.dumps(start)}", *args[1:]]


def _is_fine_tuning(class_path: object) -> bool:
    """Whether the class is `FinetuneModule` or a user's subclass of it."""
    module, _, name = str(class_path).rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):  # the parser names what is wrong
        return False
    return isinstance(found, type) and issubclass(found, FinetuneModule)


def _tower_of(args: Sequence[str], given: Mapping[str, Any], modality: str) -> VATTConfig:
    """Initial model with one modality only; its number of positions does not change."""
    source, config = given.get("model.init_args.init_from"), VATTConfig()
    goes_on = args[0] != "fit" or given.get("ckpt_path") is not None  # has its own config.yaml
    if source is not None and (Path(source).exists() or not goes_on):
        try:
            config = read_config(source)
        except CheckpointError as error:
            raise UserError(f"init_from: {error}") from error
    video, audio = config.video, config.audio
    if source is not None:  # from scratch, positions are those of the clips that are asked for
        video = replace(video, position_grid=video.position_grid or video.grid)
        audio = replace(audio, position_grid=audio.position_grid or audio.grid)
    try:
        classifier = as_classifier(config, modality, 2, video=video, audio=audio)
        return replace(classifier, classifier=None)
    except UserError as error:
        raise UserError(f"{CLASSIFIER}.modality: {error}") from error
