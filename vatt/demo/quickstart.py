"""`vatt quickstart`: a search over a folder of media, with a model that is trained on them.

Five stages: shards → check → train → extract → index. A second run skips what is done.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from vatt.config.checks import positive
from vatt.config.options import ExtractOptions, IndexOptions
from vatt.config.shipped import find_config, given_values
from vatt.demo.stages import StageRecord
from vatt.errors import UserError
from vatt.media.folder import find_media
from vatt.system.machine import num_cores
from vatt.system.progress import few_lines

RECORD = "quickstart.json"
PRETRAINING = "datamodules.pretrain.PretrainData"
PAGE = "docs/first-day.md"
NUM_LINES = 3  # of progress in the time of training, where the output is no terminal
WORDS_OF_QUERY = 6  # of a caption, in the proposed search
EXPECTATIONS = (  # below so many files; the page says more
    (1_000, "from so few a model learns to find again what it has seen, and hardly any words"),
    (100_000, "from so many a model learns rough topics and kinds of sound"),
    (float("inf"), "from so many a model becomes useful, if it trains for days on GPUs"),
)


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """Options of `vatt quickstart`.

    Args:
        out: Folder for all results. None: runs/ and the name of the media folder.
        model: Model folder, run folder, .ckpt or org/name on the Hugging Face Hub. None: a model is
            trained.
        minutes: Time of training; the other stages take some more.
        configs: Name or path of a configuration of pre-training; may be repeated.
        search: Words, or a media file, to search at the end. None: no search.
        device: auto, cpu, cuda or mps.
    """

    out: Annotated[Path | None, "-o", "FOLDER"] = None
    model: str | None = None
    minutes: Annotated[float, positive] = 10.0
    configs: Annotated[tuple[str, ...], "--config", "NAME", "+"] = ("demo",)
    search: Annotated[str | None, "WORDS"] = None
    device: str = "auto"


def quickstart(folder: Path, *, options: QuickstartOptions | None = None) -> int:
    """Makes the videos, sounds and images of a folder searchable.

    Packs them with the captions beside them, checks them, trains a small model (or takes --model),
    and builds a search index. Run the same command again to go on after an interruption, or after
    the folder has changed.

    Args:
        folder: Folder of media, with sub-folders if you like.
        options: Results and training.
    """
    options = options or QuickstartOptions()
    media = find_media(folder)
    for name in options.configs:
        _check_config(name)
    out = options.out or Path("runs") / folder.resolve().name
    record = _open_record(out, folder)
    print(f"{folder}: {len(media)} media files → {out}", flush=True)
    with few_lines(60 * options.minutes / NUM_LINES):
        model = options.model or str(_train(folder, media, out, record, options))
        found = _extract(folder, media, out, record, model, options.device)
        _build_index(out, record, found)
    query = options.search or found["query"]
    if options.search is not None:
        _print_answer(out / "index", query, options.device)
    print("Next:")
    for line in _next_commands(out, query, trained=options.model is None):
        print(f"  {line}")
    return 0


def _check_config(name: str) -> None:
    """Refuses configurations that are not of pre-training, before any work."""
    data = given_values([f"--config={find_config(name)}"]).get("data.class_path", PRETRAINING)
    if data != PRETRAINING:
        raise UserError(f"--config {name} trains on {data}: give one of pre-training, as demo", 2)


def _open_record(out: Path, folder: Path) -> StageRecord:
    """Record of the stages of a folder.

    Raises:
        UserError: the output folder holds something else.
    """
    place = str(folder.resolve())
    if not (out / RECORD).exists() and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and holds something else: choose another folder with -o")
    out.mkdir(parents=True, exist_ok=True)
    record = StageRecord(out / RECORD)
    before = record.content.get("folder", place)
    if before != place:
        raise UserError(f"{out} is of the media in {before}: choose another folder with -o")
    record.write("folder", place)
    return record


def _train(
    folder: Path,
    media: Sequence[str],
    out: Path,
    record: StageRecord,
    options: QuickstartOptions,
) -> Path:
    """Packs, checks and trains; returns the run folder."""
    from vatt.demo.quickstart_data import pack_media

    packed = pack_media(folder, media, out, record)
    run, num_files = out / "run", packed.facts.num_files
    inputs = {
        "shards": packed.fingerprints(),
        "facts": asdict(packed.facts),
        "configs": [find_config(name).read_text(encoding="utf-8") for name in options.configs],
        "minutes": options.minutes,
        "device": options.device,
    }

    def work() -> dict[str, Any]:
        from vatt.demo.quickstart_training import TrainingPlan, train_model

        plan = TrainingPlan(
            configs=options.configs, minutes=options.minutes, device=options.device, media=packed
        )
        return {"result": train_model(plan, run, goes_on=record.begin("train", inputs))}

    what = next(text for most, text in EXPECTATIONS if num_files < most)
    print(f"expect   {num_files:,} files: {what} ({PAGE})", flush=True)
    record.run("train", lambda: inputs, work, run / "config.yaml")
    return run


def _extract(
    folder: Path, media: Sequence[str], out: Path, record: StageRecord, model: str, device: str
) -> dict[str, Any]:
    """Extracts features of all media; features of files that are gone are deleted."""
    features = out / "features"
    inputs = {
        "media": [_stamp(folder / name) for name in media],
        "model": [model, *map(_stamp, _files_of(Path(model)))],
    }

    def work() -> dict[str, Any]:
        from vatt.encoders.loading import load_encoder
        from vatt.features.extract import FAILURES, extract

        report = extract(
            [str(folder)],
            features,
            model,
            ExtractOptions(replace=True, num_workers=max(1, num_cores() - 1)),
            device=device,
            show_progress=True,
        )
        kept = {*media} - {fault.where for fault in report.failures}
        for path in features.rglob("*.npz"):
            if path.relative_to(features).as_posix().removesuffix(".npz") not in kept:
                path.unlink()
        if not kept:
            raise UserError(f"no file of {folder} can be read: {report.failures[0]}")
        has_text = "text" in load_encoder(model, device=device).modalities
        failed = f", {len(report.failures)} failed: {features / FAILURES}"
        return {
            "result": f"{len(kept)} files, {report.num_windows} new windows"
            + (failed if report.failures else ""),
            "query": _query(out, has_text) or str(folder / min(kept)),
            "origin": inputs,
        }

    return record.run("extract", lambda: inputs, work, features)


def _build_index(out: Path, record: StageRecord, found: dict[str, Any]) -> None:
    index = out / "index"

    def work() -> dict[str, Any]:
        from vatt.search.build import build_index

        summary = build_index(out / "features", index, IndexOptions(), show_progress=True)
        return {"result": f"{summary.num_windows} windows of {summary.num_sources} files"}

    record.run("index", lambda: found["origin"], work, index / "index.json")


def _query(out: Path, has_text: bool) -> str | None:
    """First words of a caption, to search for; None if there are none."""
    if not has_text:
        return None
    from vatt.shards.shard_set import ShardSet

    shards = out / "shards" / "train"
    captions = ShardSet(shards).captions() if shards.exists() else iter(["somebody speaks"])
    caption = next((text for text in captions if text.strip()), None)
    return caption and " ".join(caption.split()[:WORDS_OF_QUERY])


def _print_answer(index: Path, query: str, device: str) -> None:
    from vatt.search.answer import Answer
    from vatt.search.index import Index
    from vatt.search.query import read_query

    found, asked = Index(index, device=device), read_query(query)
    array, vector = found.encode(asked)
    answer = Answer(
        query=query,
        query_modality=asked.modality,
        array=array,
        search="approximately" if found.is_approximate(array) else "exactly",
        hits=found.near(vector, array, 5, "file"),
    )
    print(answer)


def _next_commands(out: Path, query: str, *, trained: bool) -> Iterator[str]:
    """Commands that use the results, quoted for the shell."""
    yield shlex.join(["vatt", "search", str(out / "index"), query])
    if trained:
        yield shlex.join(["vatt", "report", str(out / "run")])
        start = ["--init-from", str(out / "run"), "--out", str(out / "classifier")]
        fit = ["vatt", "fit", "--config", "finetune_own", *start, "--train", "train.csv"]
        yield f"{shlex.join(fit)}  # train.csv: file,label"


def _files_of(model: Path) -> list[Path]:
    """Files of a local model; those of a run that `vatt extract` reads."""
    if not model.is_dir():
        return [model] if model.is_file() else []
    return sorted(path for path in model.rglob("*") if path.suffix in (".ckpt", ".safetensors"))


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]
