"""The command `vatt evaluate mteb`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from vatt.config.checks import at_least
from vatt.config.spaces import Space
from vatt.errors import UserError


def mteb(
    model: str,
    *,
    tasks: Annotated[tuple[str, ...], "NAME"],
    out: Annotated[Path, "FOLDER"] = Path("runs/evaluate-mteb"),
    windows: Annotated[int, at_least(1)] = 4,
    space: Literal["auto", "features"] | Space = "auto",
    batch_size: Annotated[int, at_least(1)] = 8,
    device: str = "auto",
    skip_unreadable: bool = False,
    argv: Sequence[str],
) -> int:
    """Runs tasks of the mteb library, which downloads their data sets.

    Args:
        model: Model folder, .ckpt of a run, or org/name on the Hugging Face Hub.
        tasks: Names of tasks, such as ESC50 MSRVTTT2V.
        out: Folder for results.json.
        windows: Number of windows of each file, evenly spread.
        space: Common space; auto: the one that the modalities of a task share; features: features
            of the backbone.
        batch_size: Windows per batch.
        device: auto, cpu, cuda or mps.
        skip_unreadable: Warn about files that cannot be read and let them match nothing, instead of
            stopping.
        argv: Arguments, for the record.
    """
    from vatt.evaluation.mteb_model import MtebModel, load_mteb
    from vatt.evaluation.mteb_tasks import run_tasks
    from vatt.evaluation.results import results_table, write_results

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("evaluate mteb runs in one process: start it without torchrun")
    library = load_mteb()
    try:
        chosen = [library.get_task(name) for name in dict.fromkeys(tasks)]
    except KeyError as error:
        raise UserError(f"--tasks: {error.args[0].removeprefix('KeyError: ')}") from error
    encoder = MtebModel.from_pretrained(
        model,
        space=None if space == "features" else space,
        num_windows=windows,
        on_error="skip" if skip_unreadable else "raise",
        device=device,
    )
    results = run_tasks(encoder, chosen, out, batch_size=batch_size)
    network = encoder.extractor.model
    path = write_results(results, network, model, out, args=["evaluate", "mteb", *argv])
    print(results_table(results, network.config.arrangement))
    print(path)
    return 0
