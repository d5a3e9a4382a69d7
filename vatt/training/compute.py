"""Ways to compute the same network: compiled towers, activations that are not kept."""

import torch

from vatt.network.layers import Encoder
from vatt.network.model import VATT

# Graphs of a block: of each modality's encoder, in training and in evaluation, with and without
# padding, of one row and of more. torch gives up at 8 and goes on without compiling.
RECOMPILE_LIMIT = 32


def compile_towers(network: VATT, backend: str = "inductor") -> None:
    """Compiles the transformer blocks, in place: names in the state dict stay as they are.

    A block's graph serves all blocks of its encoder, and batches and captions of any size: it is
    compiled when first run, in training and in evaluation, with and without padding, for one row
    (which torch takes for a constant) and for more, and then no more. Outside of the blocks nothing
    is compiled: DropToken draws as ever, and spectrograms, whose tables are made at the first step
    and kept, are no matter for a compiler.

    Args:
        network: Trained or used after this as before.
        backend: Of `torch.compile`.
    """
    limit = torch.compiler.config.recompile_limit
    torch.compiler.config.recompile_limit = max(limit, RECOMPILE_LIMIT)
    for encoder in _encoders(network):
        for block in encoder.blocks:
            block.compile(backend=backend, dynamic=True)


def checkpoint_activations(network: VATT) -> None:
    """Keeps only the input of each transformer block and runs the block again for its gradient.

    Costs a third more computing. Gradients are the same: the second run gets the random state of
    the first, so that dropout drops the same. Names in the state dict stay as they are.

    Args:
        network: Trained after this as before.

    Source: Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """
    for encoder in _encoders(network):
        encoder.checkpoint_activations = True


def _encoders(network: VATT) -> list[Encoder]:
    return [module for module in network.encoders.values() if isinstance(module, Encoder)]
