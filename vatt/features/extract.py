"""`vatt extract` in one process, or in several processes of torchrun that share the work."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from vatt.config.options import Backend, ExtractOptions
from vatt.errors import Fault, UserError
from vatt.features.extraction import Extraction, ExtractReport
from vatt.features.extractor import FeatureExtractor
from vatt.features.inputs import find_items
from vatt.features.spread import Spread
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
    backend: Backend = "torch",
    show_progress: bool = False,
) -> ExtractReport:
    """Extracts missing features, and writes `failures.jsonl` with the inputs that cannot be read.

    Args:
        sources: Folders of media or shards, media files, URLs, patterns and lists of paths.
        out: Folder for the results.
        model: Model folder, checkpoint, or `org/name` on the Hugging Face Hub.
        options: Windows and vectors.
        device: "auto": CUDA (one GPU per process of a machine), else MPS, else the CPU.
        dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
        backend: "onnx" runs exported towers, see `FeatureExtractor.from_pretrained`.
        show_progress: Whether the first process shows a progress bar of its share.

    Returns:
        Joint report of all processes.

    Raises:
        UserError: no input, or options that do not go together.
        CheckpointError: no model, or options that do not fit it.
    """
    items = find_items(sources)
    # an absolute path for later readers; names of the Hub stay as they are
    model_place = str(Path(model).absolute()) if Path(model).exists() else model
    with process_group(), contextlib.ExitStack() as stack:
        extractor = FeatureExtractor.from_pretrained(
            model, device=device, dtype=dtype, backend=backend
        )
        extraction = Extraction(extractor, out, options, model_place)
        if rank() == 0:
            stack.enter_context(only_run_in(out))
            extraction.prepare(items)
        gather_objects(None)  # nobody writes before that
        own = extraction.run(items[rank() :: world_size()], show_progress and rank() == 0)
        report = join_reports(gather_objects(own))
        if rank() == 0:
            write_failures(out, report.failures)
        return report


def only_run_in(out: Path) -> contextlib.AbstractContextManager[None]:
    """Context that creates and locks a folder, so that no other run changes it meanwhile.

    The lock is on the folder itself; no lock file remains.

    Raises:
        UserError: another run holds the lock.
    """
    out.mkdir(parents=True, exist_ok=True)
    refusal = UserError(
        f"another run writes into {out}: wait for it, or give each a folder of its own "
        "(`torchrun --nproc-per-node N --no-python vatt extract …` shares one)"
    )
    return locked(out, refusal)


def join_reports(reports: Sequence[ExtractReport]) -> ExtractReport:
    """Joins the reports of several processes; failures are sorted by name."""
    failures = [fault for report in reports for fault in report.failures]
    spreads: dict[str, Spread] = {}
    for name, spread in (item for report in reports for item in report.spreads.items()):
        spreads[name] = spreads.get(name, Spread()) + spread
    return ExtractReport(
        num_extracted=sum(report.num_extracted for report in reports),
        num_replaced=sum(report.num_replaced for report in reports),
        num_present=sum(report.num_present for report in reports),
        num_windows=sum(report.num_windows for report in reports),
        seconds=max(report.seconds for report in reports),
        failures=sorted(failures, key=lambda fault: fault.where),
        spreads=spreads,
    )


def write_failures(out: Path, failures: Sequence[Fault]) -> None:
    """Writes `failures.jsonl`, or removes that of an earlier run if there are no failures."""
    path = out / FAILURES
    if failures:
        rows = [json.dumps({"source": fault.where, "reason": fault.reason}) for fault in failures]
        write_atomically(path, ("\n".join(rows) + "\n").encode())
    else:
        path.unlink(missing_ok=True)
