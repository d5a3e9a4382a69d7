"""Loading of a model of any kind from a folder, a checkpoint or the Hugging Face Hub."""

import os
from pathlib import Path

import torch

from vatt.config.options import Backend
from vatt.encoders.encoder import Encoder
from vatt.encoders.model_folder import (
    KIND_FILES,
    OWN,
    SENTENCE,
    check_memory,
    kind_of,
    wanted_files,
    wants_remote_code,
    weight_bytes,
)
from vatt.encoders.own import VATTEncoder
from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import load_model, tokenizer_of
from vatt.models.hub import download, files_on_hub, local_path, model_path
from vatt.preprocess.tokenizer import Tokenizer
from vatt.system.device import choose_device

PICTURE_TEXT, SOUND_TEXT = ("clip", "siglip", "siglip2"), ("clap",)
PE_AV = ("pe_audio_video", "pe_audio", "pe_video")
READABLE = (*PICTURE_TEXT, *SOUND_TEXT, *PE_AV)  # values of `model_type`


def load_encoder(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: Tokenizer | None = None,
    backend: Backend = "torch",
) -> Encoder:
    """Loads a model with all that it needs to read media and texts.

    Args:
        source: Model folder, of vatt, transformers or sentence-transformers; run folder; checkpoint
            of `vatt fit`; or `org/name` on the Hugging Face Hub, which is downloaded once.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether a model of sentence-transformers may run Python code that comes
            with it. Read that code first.
        tokenizer: Tokenizer of a VATT. None: the one beside the model.
        backend: "torch"; or "onnx": onnxruntime runs the towers that `vatt export` wrote into the
            folder.

    Raises:
        CheckpointError: the model does not exist, cannot be read or is of an unknown kind; the
            message says what to do.
        UserError: it does not fit into memory, or a package that it needs is not installed.
    """
    path = local_path(source)
    if backend == "onnx":
        from vatt.encoders.onnx import PATTERNS, OnnxEncoder

        folder = path or download(str(source), revision, PATTERNS)
        return OnnxEncoder.load(folder, device=device, dtype=dtype, tokenizer=tokenizer)
    if backend != "torch":
        raise UserError(f"backend must be torch or onnx, got {backend!r}")
    chosen = choose_device(device)
    kind = kind_of(path or download(str(source), revision, KIND_FILES))
    if kind == OWN:
        path = path or model_path(source, revision)
        return VATTEncoder(load_model(path), tokenizer or tokenizer_of(path), device, dtype)
    if kind not in (SENTENCE, *READABLE):
        folder = path or download(str(source), revision, KIND_FILES)
        raise CheckpointError(_unknown_kind(str(source), kind, wants_remote_code(folder)))
    if tokenizer is not None:
        raise UserError(f"{source} reads texts by a tokenizer of its own: give none beside it")
    folder = path or _download_foreign(str(source), revision, trust_remote_code, chosen)
    num_bytes = weight_bytes(folder)
    if not num_bytes:
        raise CheckpointError(f"{source} has no weights: model.safetensors is missing")
    check_memory(str(source), num_bytes, chosen)
    if kind == SENTENCE:
        from vatt.encoders.sentence_transformers import SentenceTransformerEncoder

        return SentenceTransformerEncoder.load(folder, device, dtype, trust_remote_code)
    if kind in PICTURE_TEXT:
        from vatt.encoders.picture_text import PictureTextEncoder

        return PictureTextEncoder.load(folder, kind, device, dtype)
    if kind in SOUND_TEXT:
        from vatt.encoders.sound_text import SoundTextEncoder

        return SoundTextEncoder.load(folder, kind, device, dtype)
    from vatt.encoders.pe_av import PeAvEncoder

    return PeAvEncoder.load(folder, kind, device, dtype)


def _download_foreign(
    name: str, revision: str | None, with_code: bool, device: torch.device
) -> Path:
    """Downloads what is needed of another library's model, if it fits into memory."""
    files, commit = files_on_hub(name, revision)
    wanted = wanted_files(files, with_code)
    weights = [file for file in wanted if file.endswith((".safetensors", ".bin"))]
    check_memory(name, sum(files[file] for file in weights), device)
    return download(name, commit or revision, wanted)


def _unknown_kind(source: str, kind: str, wants_code: bool) -> str:
    code = " with code of its own" if wants_code else ""
    return (
        f"{source} is a model of transformers{code} whose model_type {kind!r} is not one of "
        f"{', '.join(READABLE)}: choose one of these, or a model of sentence-transformers, which "
        "has a modules.json"
    )
