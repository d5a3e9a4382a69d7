"""Report of a pre-training run: what the model has learned, of which data, with which settings."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from vatt.config.shipped import read_settings
from vatt.data.clips import Geometry
from vatt.data.loader import EvaluationLoader
from vatt.data.overlap import MOST_BY_CHANCE, repeated_clips
from vatt.data.samples import RetrievalSamples
from vatt.data.set_facts import read_set_facts
from vatt.errors import CheckpointError, MediaError, ShardError, UserError
from vatt.evaluation.embedding_table import EmbeddingTable, embed
from vatt.evaluation.gallery import gallery_parts
from vatt.evaluation.retrieval import retrieval
from vatt.evaluation.verdict import judge, verdict_sentence
from vatt.models.checkpoint import load_model, tokenizer_of
from vatt.models.run_folder import model_in
from vatt.models.training_facts import inner_settings, last_config, short_path
from vatt.network.model import VATT
from vatt.pages.report import write_report
from vatt.pages.report_data import ReportData
from vatt.pages.report_examples import spread
from vatt.preprocess.tokenizer import Tokenizer
from vatt.runs.report_facts import progress_notes, run_parts
from vatt.shards.shard_set import ShardSet
from vatt.system.device import choose_device
from vatt.system.progress import progress_bar

NUM_CLIPS = 100  # candidates: as many as a heat map and a file of some MB can show
BATCH_SIZE = 8
MAX_CAPTIONS = 20  # of a clip, as in validation


@dataclass(frozen=True, kw_only=True)
class ReportSet:
    """Set whose clips a report searches.

    Args:
        shards: The set.
        name: Its name in the page.
        size: Number of its records that are used, from the first.
        num_trained: Number of them that the model was trained on, as far as is known.
    """

    shards: ShardSet
    name: str
    size: int
    num_trained: int


def report_run(
    run: Path,
    out: Path,
    *,
    data: str | None = None,
    num_clips: int = NUM_CLIPS,
    num_workers: int = 0,
    device: str = "auto",
    show_progress: bool = False,
) -> ReportData:
    """Writes the report of a run as one page; parts without data are left out, with a note.

    Args:
        run: Run folder of a pre-training, finished or not.
        out: HTML file to write.
        data: Shards of the clips to search: a path or an address. None: the validation data of the
            run, else a part of its training data.
        num_clips: Maximum number of clips to search, evenly spaced in the data.
        num_workers: Processes that read media. 0: this process.
        device: auto, cpu, cuda or mps.
        show_progress: Whether to show progress bars.

    Returns:
        Content of the page.

    Raises:
        UserError: `run` is no run folder or has trained a classifier, or its data is gone or
            cannot be read.
        CheckpointError: the checkpoint is damaged.
    """
    last_config(run)  # refuses what is no run
    try:
        checkpoint: Path | None = model_in(run)
    except CheckpointError:
        checkpoint = None
    parts = {"metrics": {}, **run_parts(run, checkpoint)}
    notes = progress_notes(run, checkpoint, parts["history"])
    if checkpoint is not None:
        found = find_set(run, data)
        model = _pretrained(run, checkpoint).to(choose_device(device))
        tokenizer = tokenizer_of(checkpoint) if "text" in model.config.modalities else None
        asked = spread(np.arange(found.size), num_clips)
        samples = open_samples(found.shards, model, tokenizer, asked)
        rows, table = _embed_rows(model, samples, asked, num_workers, show_progress)
        if not rows:
            raise UserError(f"no clip of {found.name} can be read: give other shards by --data")
        notes = [*_notes(found, model, table, len(asked) - len(rows)), *notes]
        parts |= gallery_parts(model, samples, rows, table, show_progress=show_progress)
        parts["metrics"] = retrieval(table)
        parts |= verdict_parts(parts["metrics"], parts["similarity"])
        parts["about"] = (
            f"Clips of {found.name}: of each file the {samples.geometry.window_seconds:.3g} s in "
            "its middle, which the model gets in validation."
        )
        parts["summary"] |= {"Weights": _num_weights(model), "Clips searched": f"{len(rows):,}"}
        parts["facts"] = {**_data_facts(run, found), **parts["facts"]}
        parts["facts"]["Training"] |= {
            "weights": _num_weights(model),
            "checkpoint": checkpoint.name,
        }
    content = ReportData(title=run.absolute().name, notes=notes, **parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_report(out, content)
    return content


def verdict_parts(
    metrics: Mapping[str, Any], similarity: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Fields of `ReportData` about how sure the metrics are: `verdict` and `verdicts`."""
    verdicts = judge(metrics, similarity)
    return {
        "verdict": verdict_sentence(verdicts),
        "verdicts": {one.direction: (one.word, one.interval) for one in verdicts},
    }


def _embed_rows(
    model: VATT,
    samples: RetrievalSamples,
    rows: Sequence[int],
    num_workers: int,
    show_progress: bool,
) -> tuple[list[int], EmbeddingTable]:
    """Rows that can be read, and their embeddings."""
    num_workers = min(num_workers, -(-len(rows) // BATCH_SIZE))
    loader = EvaluationLoader(Subset(samples, rows), batch_size=BATCH_SIZE, num_workers=num_workers)
    table = embed(model, progress_bar(loader, "read", unit="batch", show=show_progress))
    readable = (table.video_mask | table.audio_mask).nonzero()[:, 0].tolist()
    return [rows[place] for place in readable], table.select(readable)


def _pretrained(run: Path, checkpoint: Path) -> VATT:
    model = load_model(checkpoint)
    if model.config.head is None:
        config = shlex.quote(str(last_config(run)))
        raise UserError(
            f"{run} has trained a classifier, and a report is about pre-training: "
            f"`vatt validate --config {config} --ckpt_path last` measures it"
        )
    return model


def _num_weights(model: VATT) -> str:
    number = sum(parameter.numel() for parameter in model.parameters())
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number:,}"


def find_set(run: Path, data: str | None = None) -> ReportSet:
    """Set whose clips are searched: the given one, that of the validation, or one of the training.

    Raises:
        UserError: the set is not there.
    """
    settings = _data_settings(run)
    trained = _train_folders(run)
    folder = str(data or settings.get("validation") or next(iter(trained), ""))
    if not folder:
        raise UserError(f"the configuration of {run} names no shards: give some by --data SHARDS")
    try:
        shards = ShardSet(folder)
    except (ShardError, OSError) as error:
        raise UserError(f"{error}; --data SHARDS gives the report other clips") from error
    most = None if data else settings.get("max_validation_clips")
    size = min(len(shards), most or len(shards))
    here = [one for name in trained if (one := _open_if_there(name)) is not None]
    num_trained = size if folder in trained else len(repeated_clips(here, shards, size))
    return ReportSet(
        shards=shards, name=short_path(folder) or folder, size=size, num_trained=num_trained
    )


def _data_settings(run: Path) -> dict[str, Any]:
    return inner_settings(read_settings(last_config(run)), "data", "init_args")


def _train_folders(run: Path) -> list[str]:
    train = _data_settings(run).get("train") or []  # a name, a list, or a mapping to weights
    return [train] if isinstance(train, str) else [str(one) for one in train]


def _open_if_there(folder: str) -> ShardSet | None:
    try:
        return ShardSet(folder)
    except (ShardError, OSError):
        return None


def open_samples(
    shards: ShardSet, model: VATT, tokenizer: Tokenizer | None, rows: Sequence[int]
) -> RetrievalSamples:
    """Retrieval set with as many captions of a clip as the rows have, at most `MAX_CAPTIONS`."""
    config, most = model.config, 1
    for row in rows:
        try:
            most = max(most, len(shards[row].segments))
        except MediaError:
            continue  # reading its clip says why
    geometry = Geometry(
        video=config.video,
        audio=config.audio,
        text=config.text,
        num_candidates=min(most, MAX_CAPTIONS),
    )
    return RetrievalSamples(shards, tokenizer, geometry)


def _notes(found: ReportSet, model: VATT, table: EmbeddingTable, num_unreadable: int) -> list[str]:
    """Sentences about the clips, and what cannot be shown with them."""
    notes = []
    if found.num_trained > MOST_BY_CHANCE * found.size:
        share = "" if found.num_trained == found.size else f"{found.num_trained:,} of "
        notes.append(
            f"The model was trained on {share}the {found.size:,} clips of {found.name}: what is "
            "measured on them says nothing about new clips. Others: --data SHARDS."
        )
    if num_unreadable:
        notes.append(f"Clips that could not be read and are left out: {num_unreadable:,}.")
    for name, lack, part in (
        ("video", "a picture", "pictures"),
        ("audio", "sound", "sounds"),
        ("text", "a caption that the model can read", "captions"),
    ):
        if name not in model.config.modalities:
            notes.append(f"The model has no {name}: searches by and for {part} are left out.")
        elif not getattr(table, f"{name}_mask").any():
            notes.append(f"No clip has {lack}: searches by and for {part} are left out.")
    return notes


def _data_facts(run: Path, found: ReportSet) -> dict[str, dict[str, str]]:
    """Sizes of the searched set and of the training sets."""
    facts = {f"Data searched: {found.name}": read_set_facts(found.shards).describe()}
    for folder in _train_folders(run):
        shards = _open_if_there(folder)
        unknown = {"size": "unknown: the shards are not here"}
        sizes = unknown if shards is None else read_set_facts(shards).describe()
        facts[f"Data trained on: {short_path(folder)}"] = sizes
    return facts
