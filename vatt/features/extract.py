"""`vatt extract` in one process or, started by torchrun, in several: each takes its share."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vatt.errors import UserError
from vatt.features.extraction import Extraction, ExtractOptions, ExtractReport
from vatt.features.extractor import FeatureExtractor
from vatt.features.inputs import find_items
from vatt.system.files import locked, write_atomically
from vatt.system.ranks import gather_objects, process_group, rank, world_size

FAILURES = "failures.jsonl"


def extract(
    sources: Sequence[str],
    out: Path,
    model: str,
    options: ExtractOptions,
    *,
    device: str = "auto",
    dtype: str = "auto",
    show_progress: bool = False,
) -> ExtractReport:
    """Extracts what is missing, and writes `failures.jsonl` with what cannot be read.

    Args:
        sources: As of `find_items`.
        out: Folder for the results.
        model: As of `FeatureExtractor.from_pretrained`.
        options: What is extracted.
        device: As of `FeatureExtractor`; "auto" gives each process of a machine a GPU of its own.
        dtype: As of `FeatureExtractor`.
        show_progress: Whether the first process draws a bar, of its share.

    Returns:
        The report of all processes.

    Raises:
        UserError: no input, or options that do not go together.
        CheckpointError: no model, or options that do not fit it.
    """
    items = find_items(sources)
    with process_group(), contextlib.ExitStack() as until_the_end:
        extractor = FeatureExtractor.from_pretrained(model, device=_own(device), dtype=dtype)
        extraction = Extraction(extractor, out, options, _place_of(model))
        if rank() == 0:
            until_the_end.enter_context(only_run_in(out))
            extraction.prepare(items)
        gather_objects(None)  # nobody writes before that
        own = extraction.run(items[rank() :: world_size()], show_progress and rank() == 0)
        report = join_reports(gather_objects(own))
        if rank() == 0:
            write_failures(out, report.failures)
        return report


@contextlib.contextmanager
def only_run_in(out: Path) -> Iterator[None]:
    """Makes a folder and holds it: no other run removes or replaces what this one is writing.

    The lock is on the folder itself: no file remains.

    Raises:
        UserError: another run holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    refusal = UserError(
        f"another run writes into {out}: wait for it, or give each a folder of its own "
        "(`torchrun --nproc-per-node N --no-python vatt extract …` shares one)"
    )
    with locked(out, refusal):
        yield


def join_reports(reports: Sequence[ExtractReport]) -> ExtractReport:
    """The reports of several processes as one, failures by name."""
    failures = {name: why for one in reports for name, why in one.failures.items()}
    return ExtractReport(
        num_made=sum(one.num_made for one in reports),
        num_there=sum(one.num_there for one in reports),
        num_windows=sum(one.num_windows for one in reports),
        seconds=max(one.seconds for one in reports),
        failures=dict(sorted(failures.items())),
    )


def write_failures(out: Path, failures: dict[str, str]) -> None:
    """Writes `failures.jsonl`, or removes that of an earlier run where nothing has failed."""
    path = out / FAILURES
    if failures:
        rows = [json.dumps({"source": name, "reason": why}) for name, why in failures.items()]
        write_atomically(path, ("\n".join(rows) + "\n").encode())
    else:
        path.unlink(missing_ok=True)


def _place_of(model: str) -> str:
    """Where to find a model again, wherever one is then; names of the Hub stay as they are."""
    path = Path(model)
    return str(path.absolute()) if path.exists() else model


def _own(device: str) -> str:
    """A GPU of this machine for each of its processes."""
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
