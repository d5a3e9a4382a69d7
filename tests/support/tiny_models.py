"""Small networks that behave as trained ones where that matters to a test."""

from dataclasses import replace

import torch

from vatt import VATT, VATTConfig, preset

TINY = preset("tiny")
ONE_LAYER = replace(TINY, encoder=replace(TINY.encoder, num_layers=1))  # quick to export


def make_model(config: VATTConfig | None = None) -> VATT:
    """A model whose BatchNorm has statistics, as that of a trained one."""
    torch.manual_seed(0)
    model = VATT(preset("tiny") if config is None else config)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.1, 0.5)
    return model
