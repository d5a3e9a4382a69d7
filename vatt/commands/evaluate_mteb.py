"""The command `vatt evaluate mteb`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vatt.errors import UserError
from vatt.evaluation.mteb_tasks import run_tasks

if TYPE_CHECKING:
    pass


SPACES = ("auto", "vt", "va", "joint", "features")


def add_mteb(tasks: Any) -> None:
    """The options of the command."""
    parser = tasks.add_parser("mteb", help="tasks of the mteb library, downloaded by their names")
    parser.add_argument("model", help="model folder, .ckpt of a run, or org/name on the Hub")
    parser.add_argument("--tasks", nargs="+", required=True, help="names, such as ESC50 MSRVTTT2V")
    parser.add_argument("--out", type=Path, help="folder; default runs/evaluate-mteb")
    parser.add_argument("--windows", type=int, default=4, help="of each file, evenly spread")
    parser.add_argument(
        "--space",
        choices=SPACES,
        default="auto",
        help="default: what the modalities of a task share; features: of the backbone",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="windows embedded at once")
    parser.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU if present")
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="files that cannot be read count as like nothing, with a warning; default: stop",
    )


def evaluate_mteb(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """`vatt evaluate mteb MODEL --tasks NAME …`."""
    from vatt.evaluation.mteb_model import MtebModel, load_mteb
    from vatt.evaluation.results import results_table, write_results

    for option, value in (("windows", arguments.windows), ("batch-size", arguments.batch_size)):
        if value < 1:
            raise UserError(f"--{option} must be at least 1, got {value}")
    mteb = load_mteb()
    try:
        tasks = [mteb.get_task(name) for name in dict.fromkeys(arguments.tasks)]
    except KeyError as error:
        raise UserError(f"--tasks: {error.args[0].removeprefix('KeyError: ')}") from error
    model = MtebModel.from_pretrained(
        arguments.model,
        space=None if arguments.space == "features" else arguments.space,
        num_windows=arguments.windows,
        on_error="skip" if arguments.skip_unreadable else "raise",
        device=arguments.device,
    )
    folder = arguments.out or Path("runs") / "evaluate-mteb"
    results = run_tasks(model, tasks, folder, batch_size=arguments.batch_size)
    vatt_model = model.extractor.model
    path = write_results(results, vatt_model, arguments.model, folder, args=["evaluate", *argv])
    print(results_table(results, vatt_model.config.arrangement))
    print(path)
    return 0
