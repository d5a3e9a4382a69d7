"""The command `vatt report`: what a run has learned, as a page."""

from pathlib import Path
from typing import Annotated

from vatt.config.checks import at_least
from vatt.errors import UserError
from vatt.system.machine import num_cores

PAGE = "report.html"


def report(
    run: Path,
    *,
    out: Annotated[Path | None, "-o", "FILE"] = None,
    data: Annotated[str | None, "SHARDS"] = None,
    clips: Annotated[int, at_least(1)] = 100,
    workers: Annotated[int, at_least(0)] = num_cores(),
    device: str = "auto",
) -> int:
    """Writes a page about a pre-training run: curves, and searches with clips that play.

    It says whether the model has learned more than chance, and needs no network and no other file.
    Parts without data are left out: captions or sound that the clips lack, and what a run that is
    not finished does not have yet.

    Args:
        run: Run folder of `vatt fit`, finished or not.
        out: Page to write, or a folder for report.html. None: RUN/report.html.
        data: Shards whose clips are searched. None: validation data of the run, else a part of its
            training data.
        clips: Most clips to search, evenly spaced in the data.
        workers: Processes that read media; 0: this process.
        device: auto, cpu, cuda or mps.
    """
    from vatt.runs.report import report_run

    page = run / PAGE if out is None else out / PAGE if out.is_dir() else out
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"-o {page} is no page: give a name that ends in .html, or a folder", 2)
    content = report_run(
        run,
        page,
        data=data,
        num_clips=clips,
        num_workers=workers,
        device=device,
        show_progress=True,
    )
    for line in (content.verdict, *content.notes):
        if line:
            print(line)
    print(f"{page}: open it in a browser")
    return 0
