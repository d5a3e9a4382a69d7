"""The model as users get it: `vatt.VATT`, which loads, saves and publishes itself."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vatt.models.hub import model_path, publish_folder, repository_name
from vatt.network import model as network

if TYPE_CHECKING:
    from vatt.models.card import Card
    from vatt.preprocess.tokenizer import Tokenizer

# The modules that read and write models build this class, so its methods import them.


class VATT(network.VATT):
    """Video-Audio-Text Transformer.

    `from_pretrained`, `save_pretrained` and `push_to_hub` work as those of huggingface_hub's
    `PyTorchModelHubMixin`, on model folders of vatt: with the tokenizer and a model card of facts.

    Args:
        config: Sizes and arrangement; `vatt.preset` has the published ones.

    Attributes:
        origin: Model folder, run folder or checkpoint that the model was loaded from. None: it was
            not loaded.

    Example:
        >>> model = vatt.VATT.from_pretrained("runs/demo")
        >>> model.save_pretrained("published", licence="apache-2.0")
        >>> model.push_to_hub("org/name", licence="apache-2.0")
    """

    origin: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a model in evaluation mode; code that comes with a model is never run.

        Args:
            source: Model folder, run folder, checkpoint of `vatt fit`, or `org/name` on the Hugging
                Face Hub, which is downloaded once.
            revision: Branch, tag or commit on the Hub.
            token: Token for the Hub. None: that of `hf auth login` or `HF_TOKEN`.
            cache_dir: Folder of downloads. None: that of huggingface_hub.
            force_download: Whether to download files that are in the cache, too.
            local_files_only: Whether to use the cache only.

        Raises:
            CheckpointError: the model does not exist or cannot be read; the message says what to
                do.

        Example:
            >>> vatt.VATT.from_pretrained("runs/demo").embed_text(ids)["vt"]  # [B, d_vt]
        """
        from vatt.models.checkpoint import load_model_as

        path = model_path(
            source,
            revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return load_model_as(cls, path)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        tokenizer: "Tokenizer | None" = None,
        licence: str | None = None,
        results: Sequence[str | os.PathLike[str]] = (),
        run: str | os.PathLike[str] | None = None,
    ) -> None:
        """Writes a model folder with tokenizer and model card.

        Args:
            folder: Folder to write, created if missing. Files of the model are replaced one by one,
                atomically; a `README.md` that is there stays as it is.
            tokenizer: Tokenizer that the model was trained with. None: that of `origin`.
            licence: Licence identifier of the Hub for the card, such as `apache-2.0`. None: that of
                the card in `origin`, if the weights are still the same.
            results: `results.json` files of `vatt evaluate` for the card.
            run: Folder of the run that trained the model, for the card. None: that of `origin`, if
                the weights are still the same.

        Raises:
            UserError: results belong to another model, or a file for the card cannot be read.
            OSError: a file cannot be written.

        Example:
            >>> vatt.VATT.from_pretrained("runs/demo").save_pretrained("published")
        """
        name = Path(folder).absolute().name
        self._save(Path(folder), name, tokenizer, licence, results, run)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: "Tokenizer | None" = None,
        licence: str | None = None,
        results: Sequence[str | os.PathLike[str]] = (),
        run: str | os.PathLike[str] | None = None,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Publishes the model on the Hugging Face Hub, as the folder that `save_pretrained` writes.

        Args:
            repo_id: `org/name`, or `name` for your own account; created if missing.
            tokenizer: Tokenizer that the model was trained with. None: that of `origin`.
            licence: Licence identifier of the Hub for the card, such as `apache-2.0`.
            results: `results.json` files of `vatt evaluate` for the card.
            run: Folder of the run that trained the model, for the card.
            commit_message: Message of the commit.
            private: Whether a new repository is private. None: as the organisation has it.
            token: Token with the right to write. None: that of `hf auth login` or `HF_TOKEN`.
            branch: Branch to push to. None: the main branch.
            create_pr: Whether to open a pull request instead.

        Returns:
            Address of the commit.

        Raises:
            UserError: the name is not valid, there is no token, or the Hub refuses the upload or
                cannot be reached; the message says what to do.

        Example:
            >>> vatt.VATT.from_pretrained("runs/demo").push_to_hub("org/name", licence="mit")
        """
        name = repository_name(repo_id, token)
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), name, tokenizer, licence, results, run)
            return publish_folder(
                folder,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
            )

    def _save(
        self,
        folder: Path,
        name: str,
        tokenizer: "Tokenizer | None",
        licence: str | None,
        results: Sequence[str | os.PathLike[str]],
        run: str | os.PathLike[str] | None,
    ) -> None:
        from vatt.models.card import CARD, write_model_card
        from vatt.models.checkpoint import save_model, tokenizer_of

        if tokenizer is None and self.origin is not None and self.origin.exists():
            tokenizer = tokenizer_of(self.origin)
        card = self._read_card(licence, results, run)
        save_model(self, folder, tokenizer)
        has_tokenizer = (folder / "tokenizer.json").exists()
        if "text" in self.config.modalities and not has_tokenizer:
            warnings.warn(
                "the model reads text, but goes without a tokenizer.json: give the tokenizer= that "
                "it was trained with",
                stacklevel=3,
            )
        if not (folder / CARD).exists():
            write_model_card(folder, self, card, name=name)

    def _read_card(
        self,
        licence: str | None,
        results: Sequence[str | os.PathLike[str]],
        run: str | os.PathLike[str] | None,
    ) -> "Card":
        """Facts for the card; those of the origin count only for its own weights."""
        from vatt.models.card import read_card
        from vatt.models.checkpoint import load_model, weights_digest
        from vatt.models.training_facts import find_model

        source, own_run = None, None
        if self.origin is not None and self.origin.exists():
            path, found = find_model(self.origin)
            if weights_digest(load_model(path)) == weights_digest(self):
                source, own_run = path, found
        return read_card(self, source, run=run or own_run, results=results, licence=licence)
