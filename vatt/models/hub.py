"""Models of the Hugging Face Hub: downloaded once, then read like any model folder."""

import os
import re
from pathlib import Path

from vatt.errors import CheckpointError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# nothing else is fetched; README.md for what its head says of licence and training
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "README.md")


def model_path(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Local path of a model, which is downloaded from the Hub if needed.

    Args:
        source: Folder or checkpoint; if neither exists, `org/name` on the Hub.
        revision: Branch, tag or commit on the Hub; None: the newest.

    Raises:
        CheckpointError: there is no such file or folder, and the download from the Hub fails.
    """
    path = Path(source)
    if path.exists():
        return path
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"no model at {path}: give a model folder, a .ckpt file or org/name of the Hugging "
            "Face Hub"
        )
    return _download(source, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise CheckpointError(
            f"{name} is neither a file or folder here nor to be had from the Hugging Face Hub: "
            f"{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Message about an error of the Hub, with a remedy."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "its owner must grant access; ask there, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no model of that name is public; check the name, or `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the model has no such revision; check its name"
    offline = errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError
    if isinstance(error, offline):
        return (
            "there is no connection (or HF_HUB_OFFLINE is set) and no copy in the cache; "
            "download it where there is one, and give the folder"
        )
    return " ".join(str(error).split()) or type(error).__name__
