"""Loading of a model of any kind from a folder, a checkpoint or the Hugging Face Hub."""

import os

import torch

from vatt.encoders.encoder import Encoder
from vatt.encoders.own import VATTEncoder
from vatt.models.checkpoint import load_model, tokenizer_of
from vatt.models.hub import model_path
from vatt.preprocess.tokenizer import Tokenizer


def load_encoder(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> Encoder:
    """Loads a model with all that it needs to read media and texts.

    Args:
        source: Model folder, run folder, checkpoint of `vatt fit`, or `org/name` on the Hugging
            Face Hub, which is downloaded once.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
        revision: Branch, tag or commit on the Hub.
        tokenizer: Tokenizer of a VATT. None: the one beside the model.

    Raises:
        CheckpointError: the model does not exist or cannot be read; the message says what to do.
    """
    path = model_path(source, revision)
    return VATTEncoder(load_model(path), tokenizer or tokenizer_of(path), device, dtype)
