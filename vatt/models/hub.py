"""Models of the Hugging Face Hub: downloaded once, read like any model folder, and published."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vatt.errors import CheckpointError, UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# nothing else is fetched; README.md for what its head says of licence and training
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "README.md")
WRITE_TOKEN = "`hf auth login` with one that may write, or set HF_TOKEN"


def model_path(source: str | os.PathLike[str], revision: str | None = None, **options: Any) -> Path:
    """Local path of a model, which is downloaded from the Hub if needed.

    Args:
        source: Folder or checkpoint; if neither exists, `org/name` on the Hub.
        revision: Branch, tag or commit on the Hub; None: the newest.
        options: Further arguments of huggingface_hub's `snapshot_download`, such as `token`.

    Raises:
        CheckpointError: there is no such file or folder, and the download from the Hub fails.
    """
    path = local_path(source)
    return path or download(str(source), revision, MODEL_FILES, **options)


def local_path(source: str | os.PathLike[str]) -> Path | None:
    """Path of a model on this machine; None for `org/name` on the Hub.

    Raises:
        CheckpointError: there is no such file or folder, and it is no name on the Hub.
    """
    path = Path(source)
    if path.exists():
        return path
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"no model at {path}: give a model folder, a .ckpt file or org/name of the Hugging "
            "Face Hub"
        )
    return None


def download(name: str, revision: str | None, patterns: Sequence[str], **options: Any) -> Path:
    """Folder of the cache with those files of a model on the Hub that match a pattern.

    Args:
        name: `org/name`.
        revision: Branch, tag or commit; None: the newest.
        patterns: Names of files, with `*` for any characters.
        options: Further arguments of huggingface_hub's `snapshot_download`, such as `token`.

    Raises:
        CheckpointError: the model or revision does not exist, or there is no connection and no
            copy in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), **options)
        )
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise _not_to_be_had(name, error) from error


def files_on_hub(name: str, revision: str | None = None) -> tuple[dict[str, int], str | None]:
    """Bytes of the files of a model on the Hub by name, and its commit.

    Without a connection, the files of the copy in the cache, and None.

    Raises:
        CheckpointError: as for `download`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined] # httpx's or httpx2's
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise _not_to_be_had(name, error) from error
    except (OfflineModeIsEnabled, OSError, HTTPError):
        folder = download(name, revision, [], local_files_only=True)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}, None
    return {one.rfilename: one.size or 0 for one in info.siblings or ()}, info.sha


def _not_to_be_had(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} is neither a file or folder here nor to be had from the Hugging Face Hub: "
        f"{_reason(error)}"
    )


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


def repository_name(repo_id: str, token: str | bool | None = None) -> str:
    """Name of a repository without its owner, before anything is written for it.

    Args:
        repo_id: `org/name`, or `name` for the account of the token.
        token: Token for the Hub. None: that of `hf auth login` or `HF_TOKEN`.

    Raises:
        UserError: the id is not valid, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # loads lazily

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id!r} is no name on the Hugging Face Hub: give org/name, each of letters, "
            "digits, '-', '_' and '.', with a letter or digit at both ends"
        ) from error
    if not (token if isinstance(token, str) else get_token() and token is not False):
        raise UserError(f"publishing needs a token of the Hugging Face Hub: {WRITE_TOKEN}")
    return repo_id.rpartition("/")[2]


def publish_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str = "Upload model",
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads a model folder to the Hugging Face Hub, all files in one commit.

    Args:
        folder: Model folder, such as `vatt export` writes.
        repo_id: `org/name`, or `name` for your own account; created if missing.
        commit_message: Message of the commit.
        private: Whether a new repository is private. None: as the organisation has it.
        token: Token with the right to write. None: that of `hf auth login` or `HF_TOKEN`.
        branch: Branch to push to, created if missing. None: the main branch.
        create_pr: Whether to open a pull request instead.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        UserError: there is no such folder, the name is not valid, there is no token, or the Hub
            refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # httpx's or httpx2's

    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder} to publish: write one with `vatt export`")
    repository_name(repo_id, token)
    api = HfApi(library_name="vatt", token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    except (OSError, ValueError, HTTPError, RuntimeError) as error:  # the last: of one large file
        raise UserError(f"{repo_id} is not published: {_refusal(error)}") from error
    return str(commit.pr_url or commit.commit_url)


def _refusal(error: Exception) -> str:
    """Message about an upload that failed, with a remedy."""
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the Hub does not know this token: {WRITE_TOKEN}"
        if status == 403:
            return f"this token may not write there: {WRITE_TOKEN}, or give another org/name"
        answer = error.server_message or f"its answer was {status}"
        return f"the Hub refuses it: {' '.join(answer.split())}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it, or upload the folder elsewhere by `hf upload`"
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError | ValueError | RuntimeError):
        return reason
    return f"the Hub cannot be reached ({reason}): try again where there is a connection"
