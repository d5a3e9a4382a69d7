"""Compiled encoders, and recomputation of activations."""

import os
import shutil
from importlib.util import find_spec
from inspect import signature

import torch

from vatt.errors import UserError
from vatt.network.layers import Checkpointing, Encoder
from vatt.network.model import VATT

# Graphs of a block: of each modality's encoder, in training and in evaluation, with and without
# padding, of one row and of more. torch gives up at 8 and goes on without compiling, with other
# random draws in dropout.
RECOMPILE_LIMIT = 32


def compile_towers(network: VATT, backend: str = "inductor") -> None:
    """Compiles the transformer blocks in place; names in the state dict do not change.

    All blocks of an encoder share one graph, for batches and captions of any size. It is compiled
    at its first run in each of these cases: training or evaluation, with or without padding, one
    row (which torch treats as a constant) or more. Nothing outside the blocks is compiled, such as
    DropToken and spectrograms.

    Args:
        network: Network to compile; it is used as before.
        backend: Backend of `torch.compile`.
    """
    options = {}
    if "recompile_limit" in signature(torch.compile).parameters:
        options["recompile_limit"] = RECOMPILE_LIMIT
    else:  # torch 2.11, where this setting holds for the threads of the backward pass, too
        torch.compiler.config.recompile_limit = RECOMPILE_LIMIT
    # DDP would split graphs to exchange gradients within them; between blocks is early enough
    torch._dynamo.config.optimize_ddp = False
    for encoder in _encoders(network):
        for block in encoder.blocks:
            block.compile(backend=backend, dynamic=True, **options)


def check_compiler(device: torch.device) -> None:
    """Refuses to compile for a device without the programs that this needs.

    Args:
        device: Device of the training.

    Raises:
        UserError: there is no C or C++ compiler, or no Triton for a GPU.
    """
    is_gpu = device.type == "cuda"
    variable, names = ("CC", ("gcc", "clang")) if is_gpu else ("CXX", ("g++", "clang++"))
    missing = None
    if not any(name and shutil.which(name) for name in (os.environ.get(variable), *names)):
        missing = f"a compiler ({' or '.join(names)}, or its path in {variable})"
    elif is_gpu and find_spec("triton") is None:
        missing = "the package triton"
    if missing is not None:
        raise UserError(
            f"compile_towers needs {missing}: install it, or train without compiling "
            "(--model.init_args.compile_towers false)"
        )


def checkpoint_activations(network: VATT, kind: Checkpointing = True) -> None:
    """Stores little of each transformer block, and runs the block again for its gradient.

    Gradients do not change: the second run has the random state of the first, so dropout is the
    same. Names in the state dict do not change.

    Args:
        network: Network to change; it is trained as before.
        kind: True: only the inputs of blocks are stored, for a third more computation. `selective`:
            also the results of dense layers, which are not computed again.

    Source: Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """
    for encoder in _encoders(network):
        encoder.checkpoint_activations = kind


def _encoders(network: VATT) -> list[Encoder]:
    return [module for module in network.encoders.values() if isinstance(module, Encoder)]
