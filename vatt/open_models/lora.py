"""Low-rank adapters (LoRA) by the package peft."""

from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from torch import nn

from vatt.config.open_model import LoraConfig
from vatt.errors import UserError
from vatt.system.extras import load_extra


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Adds adapters to linear layers in place, and freezes all other weights of the model.

    Args:
        model: Model of transformers, or another module.
        config: Size of the adapters, and which layers get them.

    Raises:
        UserError: peft is not installed, or no layer has such a name.
    """
    peft = load_extra(
        "peft", UserError("model.lora needs the package peft: pip install 'vatt[lora]'")
    )
    # exactly this type: attention of torch reads the weights of its own layers past adapters
    layers = [name for name, part in model.named_modules() if type(part) is nn.Linear]
    chosen = [n for n in layers if any(fnmatchcase(n, pattern) for pattern in config.layers)]
    if not chosen:
        raise UserError(
            f"model.lora.layers: no linear layer has a name like {', '.join(config.layers)}; the "
            f"first of {len(layers)} are {', '.join(layers[:3])}"
        )
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=chosen,
    )
    peft.inject_adapter_in_model(settings, model)


def merge_lora(model: nn.Module) -> None:
    """Adds the adapters to the weights of their layers, in place, and removes them."""
    kind = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    layers = [(n, part) for n, part in model.named_modules() if isinstance(part, kind)]
    for name, layer in layers:
        adapted: Any = layer
        adapted.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, adapted.get_base_layer())
