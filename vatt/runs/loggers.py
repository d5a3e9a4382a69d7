"""Loggers of a run besides its CSV file: Weights & Biases and TensorBoard."""

import netrc
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vatt.errors import UserError
from vatt.models.training_facts import METRICS, read_metrics
from vatt.system.files import write_atomically

WandbMode = Literal["auto", "online", "offline", "disabled"]
# hosts under which `wandb login` files a key
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
CONNECT_SECONDS = 30  # then the run goes on offline
RUN_ID = "wandb_run_id"  # files in the run directory


def tensorboard_logger(folder: Path) -> TensorBoardLogger:
    """TensorBoard logger that writes to `tensorboard/` in the run folder."""
    return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)


def check_packages(run: Mapping[str, Any]) -> None:
    """Refuses settings that need a package that is not installed, before any work.

    Args:
        run: Settings of the run, by their names in `RunConfig`.

    Raises:
        UserError: a package is missing.
    """
    if run["tensorboard"] and find_spec("tensorboard") is None:
        raise UserError(
            'run.tensorboard needs the package tensorboard: pip install "vatt[tracking]", or set '
            "it to false"
        )
    if run["wandb"] in ("online", "offline") and find_spec("wandb") is None:
        raise UserError(
            f"run.wandb {run['wandb']} needs the package wandb: pip install wandb, or set it to "
            "disabled"
        )
    has_wandb = wandb_mode(run["wandb"]) != "disabled"
    if run["wandb_checkpoints"] and not has_wandb:
        raise UserError("run.wandb_checkpoints is true, but W&B is disabled: set one of them")
    sends_pictures = has_wandb and run["media_every_n_validations"] is not None
    if sends_pictures and find_spec("PIL") is None:  # wandb reads pictures with it
        raise UserError(
            "run.media_every_n_validations needs the package pillow, for pictures in W&B: pip "
            'install "vatt[tracking]", or set it to null'
        )


def wandb_mode(mode: WandbMode) -> WandbMode:
    """Mode of W&B; `auto` is WANDB_MODE if it is set, else online with a key, else offline.

    If the package is missing or wandb is disabled, the mode is always `disabled`.
    """
    if mode == "disabled" or find_spec("wandb") is None:
        return "disabled"
    if mode != "auto":
        return mode
    switched_off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes")
    wanted = "disabled" if switched_off else os.environ.get("WANDB_MODE", "").lower()
    if wanted in ("online", "offline", "disabled"):
        return wanted  # type: ignore[return-value]  # one of the literals, see the line above
    if wanted in ("dryrun", "shared"):
        return "offline" if wanted == "dryrun" else "online"
    return "online" if has_wandb_key() else "offline"


def has_wandb_key() -> bool:
    """Whether there is a key, in the environment or stored by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        logins = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(logins.authenticators(name) for name in ((host,) if host else WANDB_HOSTS))


class RunWandb(WandbLogger):
    """W&B logger of a run folder, which never asks questions and never hangs.

    It is online only with a key; if the server does not answer in time, the run continues offline.
    The run folder stores the id of the W&B run, so a resumed run continues the same curves.
    Repeated steps are not sent again: a resume is exact, so they are equal. Nothing is written
    before the run begins, which is after Lightning has prepared the data.

    Args:
        folder: Run folder; files of W&B are in its `wandb/`.
        project: W&B project.
        mode: `online` or `offline`, see `wandb_mode`.
    """

    def __init__(self, folder: Path, project: str, mode: WandbMode) -> None:
        if mode == "online" and not has_wandb_key():
            print(
                "W&B: no key (`wandb login` stores one), so this run is offline.", file=sys.stderr
            )
            mode = "offline"
        import wandb

        self._folder = folder
        self._sent: dict[int, set[str]] = {}
        path, stored_id = folder / RUN_ID, None
        if path.exists():
            stored_id = path.read_text().strip()
            _, rows = read_metrics(folder / METRICS)
            self._sent = {int(row["step"]): {*row} for row in rows}
        super().__init__(
            name=folder.name,
            save_dir=folder,
            project=project,
            id=stored_id,
            mode=mode,
            # offline there is nothing to resume from: pieces of one id are joined by `wandb sync`
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(init_timeout=CONNECT_SECONDS, silent=True),
        )
        del self._wandb_init["anonymous"]  # Lightning sets it, and W&B warns of it

    @property
    def experiment(self) -> Any:
        """W&B run, started at first use; offline if the server cannot be reached."""
        import wandb

        if self._experiment is None:
            self._name_run()
        try:
            return super().experiment
        except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
            reason = str(error).splitlines()[0]
            print(f"W&B cannot be reached ({reason}): this run is offline.", file=sys.stderr)
            wandb.teardown()  # its service would call the run's id taken
            self._wandb_init.update(mode="offline", resume=None)
            return super().experiment

    @rank_zero_only
    def _name_run(self) -> None:
        """Gives a new run an id that it keeps after a resume; a sweep's agent has one for it."""
        path = self._folder / RUN_ID
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            name = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
            write_atomically(path, f"{name}\n".encode())
        self._id = self._wandb_init["id"] = path.read_text().strip()

    @property
    def files(self) -> Path | None:
        """Folder of the W&B run's files; None before the run starts."""
        run = self._experiment
        return None if run is None else Path(run.settings.sync_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Sends metrics, except those of steps sent before a resume."""
        sent = self._sent.get(step or 0, set())
        new = {name: value for name, value in metrics.items() if name not in sent}
        if new.keys() - {"epoch"}:
            super().log_metrics(new, step)

    @rank_zero_only
    def log_checkpoint(self, path: Path, step: int) -> None:
        """Uploads a checkpoint as a version of the artifact `checkpoint-<run id>`."""
        import wandb

        artifact = wandb.Artifact(
            f"checkpoint-{self.experiment.id}", type="model", metadata={"step": step}
        )
        artifact.add_file(str(path))
        self.experiment.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    @rank_zero_only
    def log_media(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        pictures: Mapping[str, Path],
        step: int,
    ) -> None:
        """Sends pictures by title, and a table whose cells may be paths of png and mp4 files."""
        import wandb

        def as_media(cell: Any) -> Any:
            if not isinstance(cell, Path):
                return cell
            if cell.suffix == ".mp4":
                return wandb.Video(str(cell), format="mp4")
            return wandb.Image(str(cell))

        data = [[as_media(cell) for cell in row] for row in rows]
        media = {f"media/{title}": as_media(path) for title, path in pictures.items()}
        table = wandb.Table(columns=list(columns), data=data)
        self.log_metrics({"media/clips": table, **media}, step)

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Sends the configuration, which a resumed run may change."""
        self.experiment.config.update(dict(config), allow_val_change=True)
