"""Defaults of fine-tuning an open model, from the files of the model; and its export."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from vatt.config.geometry import MODALITIES
from vatt.config.open_model import TowersConfig
from vatt.encoders.transformers_loading import load_transformers
from vatt.open_models.loading import save_open_model
from vatt.open_models.settings import read_settings
from vatt.training.open_model import OpenModelModule
from vatt.training.sharding import whole

MODEL = "model.init_args.model"
EXPORT = "model"  # in the run folder


def with_open_model(args: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    """Arguments of a run of an open model, preceded by what its files say of it.

    These are its modalities and the geometry of its clips. Settings of the user come later and
    override them.

    Args:
        args: The subcommand and its arguments.
        given: Values that the arguments set, by dotted key.

    Raises:
        UserError: there is no such model, or it is of a kind that cannot be fine-tuned.
    """
    class_path = given.get("model.class_path")
    if not is_open_model(class_path):
        return list(args)
    source = given.get("model.init_args.init_from") or given.get(f"{MODEL}.source")
    towers = {name: given.get(f"{MODEL}.towers.{name}") for name in MODALITIES}
    if source is None and not any(towers.values()):
        return list(args)
    load_transformers().logging.disable_progress_bar()  # Lightning's packages import it, too
    settings = read_settings(source, None if source else TowersConfig(**towers)).to_dict()
    start = {"model": {"class_path": class_path, "init_args": {"model": settings}}}
    return [args[0], f"--config={json.dumps(start)}", *args[1:]]


def is_open_model(class_path: object) -> bool:
    """Whether the class is `OpenModelModule` or a user's subclass of it."""
    module, _, name = str(class_path).rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):  # the parser names what is wrong
        return False
    return isinstance(found, type) and issubclass(found, OpenModelModule)


def tokenizer_source(settings: Mapping[str, Any]) -> str | None:
    """Folder or hub id of the tokenizer of an open model; None if it has no text.

    Args:
        settings: `init_args` of the model.
    """
    model = settings["model"]
    if model["source"] is None and model["towers"] is None:  # the model's settings refuse this
        return None
    if "text" not in model["modalities"]:
        return None
    return str(model["source"] or model["towers"]["text"])


class OpenModelExport(Callback):
    """Writes the fine-tuned model into the run folder at the end, in its own format.

    Attributes:
        folder: Folder of the model. None: it is not written yet.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes `model/`; an average of weights is in the module by now."""
        module = cast(OpenModelModule, pl_module)
        # one after the other: the device need not hold the whole model
        state = module.network.state_dict()
        weights = {name: whole(value).cpu() for name, value in state.items()}
        scales = module.trained_scales()
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / EXPORT
        save_open_model(module.network.config, weights, folder, scales)
        self.folder = folder
