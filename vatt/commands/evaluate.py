"""The commands `vatt evaluate retrieval | linear | zero-shot | mteb`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vatt.config.checks import at_least, positive
from vatt.config.spaces import Space
from vatt.errors import Fault, UserError
from vatt.system.machine import num_cores

if TYPE_CHECKING:
    from vatt.encoders.encoder import Encoder
    from vatt.evaluation.clip_views import ViewPlan
    from vatt.sets.items import EvaluationSet

MediaModality = Literal["video", "audio"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Windows, machine and results of an evaluation.

    Args:
        out: Folder for results.json. None: runs/evaluate-TASK-DATA.
        windows: Number of windows of each clip, evenly spread.
        frame_rate: Frames per second. None: the model's rate; 12.5 for a VATT and a published set.
        batch_size: Clips per batch.
        workers: Processes that read media.
        device: auto, cpu, cuda or mps.
        seed: Seed of random draws.
    """

    out: Annotated[Path | None, "FOLDER", "-o", "--out"] = None
    windows: Annotated[int, "--num-windows", at_least(1)] = 4
    frame_rate: Annotated[float | None, positive] = None
    batch_size: Annotated[int, at_least(1)] = 8
    workers: Annotated[int, at_least(0)] = num_cores()
    device: str = "auto"
    seed: int = 0


def retrieval(
    model: Annotated[str, "--model"],
    *,
    data: str,
    videos: Annotated[Path | None, "FOLDER"] = None,
    split: str | None = None,
    clips: Literal["records", "segments"] = "records",
    tokenizer: Annotated[Path | None, "FILE"] = None,
    common: EvaluateOptions,
    argv: Sequence[str],
) -> int:
    """Measures retrieval between text, video and audio, in all directions.

    Each direction has two results: embeddings compares the mean vector of a clip's windows,
    similarities compares every window and takes the mean.

    Args:
        model: Model folder, run folder, .ckpt of a run, or org/name on the Hugging Face Hub.
        data: Shards; or the annotations of MSR-VTT (csv or json) or YouCook2 (json), with --videos.
        videos: Folder of the files that the annotations name. None: the data are shards.
        split: Split of the annotations. None: the split of published results.
        clips: Clips of shards: records with all their captions, or timed captions (segments).
        tokenizer: Tokenizer of a VATT. None: the model's tokenizer.json.
        common: Windows, machine and results.
        argv: Arguments, for the record.
    """
    from vatt.evaluation.zero_shot_retrieval import embed_items
    from vatt.sets.retrieval import read_retrieval_set
    from vatt.system.ranks import process_group

    with process_group():
        items = read_retrieval_set(data, videos=videos, split=split, clips=clips)
        run = _Run("retrieval", model, items, common, argv, tokenizer)
        run.check_tokenizer()
        plan = run.plan("video", "audio")
        tables = embed_items(
            run.encoder,
            items.items,
            plan,
            batch_size=common.batch_size,
            num_workers=common.workers,
        )
        metrics = {
            f"{direction}, {averaging}": row
            for averaging, directions in tables.metrics().items()
            for direction, row in directions.items()
        }
        protocol = {**plan.describe(), "ties": "count half each"}
        table, counts = tables.embeddings, tables.embeddings.num_with()
        num_with = {name: counts[name] for name in run.encoder.modalities}
        return run.report(protocol, metrics, len(table), tables.faults, num_with=num_with)


def linear(
    model: Annotated[str, "--model"],
    *,
    data: Path,
    media: Annotated[Path, "FOLDER"],
    modality: MediaModality | None = None,
    classifiers: str = "low-rank,logistic",
    steps: Annotated[int, at_least(1)] = 50_000,
    regularisation: Annotated[float, "C", positive] = 1.0,
    cache: Annotated[Path | None, "FOLDER"] = None,
    common: EvaluateOptions,
    argv: Sequence[str],
) -> int:
    """Trains and tests classifiers on frozen features.

    Args:
        model: Model folder, run folder, .ckpt of a run, or org/name on the Hugging Face Hub.
        data: Folder with the lists of UCF101 or HMDB51, esc50.csv, or a csv with the columns file,
            label and split or fold.
        media: Folder of the files that the lists name.
        modality: Modality to classify. None: audio for ESC-50, else video.
        classifiers: Classifiers, separated by commas: low-rank (the paper's), logistic
            (scikit-learn's).
        steps: Training steps of the low-rank classifier.
        regularisation: Parameter C of logistic regression.
        cache: Folder in which to store features. None: OUT/features.
        common: Windows, machine and results.
        argv: Arguments, for the record.
    """
    from vatt.evaluation.frozen_features import extract_features
    from vatt.evaluation.linear import CLASSIFIERS, LowRankConfig, evaluate_folds
    from vatt.features.spread import Spread
    from vatt.sets.classification import read_classification_set

    _refuse_processes("linear")
    names = classifiers.split(",")
    chosen = [name for name in CLASSIFIERS if name in names]
    if set(names) - set(CLASSIFIERS):
        raise UserError(f"--classifiers are {' and '.join(CLASSIFIERS)}, got {classifiers}")
    items = read_classification_set(data, media)
    modality = modality or ("audio" if items.name == "esc50" else "video")
    run = _Run("linear", model, items, common, argv)
    plan = run.plan(modality)
    features = extract_features(
        run.encoder,
        items.items,
        plan,
        modality=modality,
        digest=run.encoder.digest(),
        cache=cache or run.folder / "features",
        batch_size=common.batch_size,
        num_workers=common.workers,
    )
    print(f"features of {modality} {Spread().add(features.values.flatten(0, 1))}")
    low_rank = LowRankConfig(num_steps=steps)
    metrics = evaluate_folds(
        features,
        items.labels,
        chosen,
        low_rank=low_rank,
        regularisation=regularisation,
        seed=common.seed,
    )
    settings = {"low-rank": asdict(low_rank), "logistic": {"regularisation": regularisation}}
    protocol = {
        "modality": modality,
        **plan.describe(),
        "classifiers": {name: settings[name] for name in chosen},
    }
    return run.report(protocol, metrics, len(features.items), features.faults)


def zero_shot(
    model: Annotated[str, "--model"],
    *,
    data: Path,
    media: Annotated[Path, "FOLDER"],
    modality: MediaModality | None = None,
    prompt: Annotated[tuple[str, ...] | None, "+"] = None,
    tokenizer: Annotated[Path | None, "FILE"] = None,
    common: EvaluateOptions,
    argv: Sequence[str],
) -> int:
    """Classifies files by their similarity to prompts, and measures the accuracy.

    Args:
        model: Model folder, run folder, .ckpt of a run, or org/name on the Hugging Face Hub.
        data: Folder with the lists of UCF101 or HMDB51, esc50.csv, or a csv with the columns file,
            label and split or fold.
        media: Folder of the files that the lists name.
        modality: Modality to classify. None: audio for ESC-50, else video.
        prompt: Text with {} for the class, such as 'a video of {}'; several prompts are averaged.
            None: {}.
        tokenizer: Tokenizer of a VATT. None: the model's tokenizer.json.
        common: Windows, machine and results.
        argv: Arguments, for the record.
    """
    from vatt.evaluation.zero_shot_classification import (
        PROMPTS,
        embed_classes,
        score_classes,
        zero_shot_metrics,
    )
    from vatt.sets.classification import TEST, read_classification_set

    _refuse_processes("zero-shot")
    items = read_classification_set(data, media).in_split(TEST)
    modality = modality or ("audio" if items.name == "esc50" else "video")
    run = _Run("zero-shot", model, items, common, argv, tokenizer)
    run.check_tokenizer()
    plan = run.plan(modality)
    prompts = list(prompt or PROMPTS)
    clips, scores = score_classes(
        run.encoder,
        items.items,
        embed_classes(run.encoder, items.labels, prompts, modality=modality),
        plan,
        modality=modality,
        num_workers=common.workers,
    )
    return run.report(
        {"modality": modality, **plan.describe(), "prompts": prompts},
        zero_shot_metrics(clips.items, items.labels, scores),
        len(clips.items),
        clips.faults,
        num_classes=len(items.labels),
    )


def mteb(
    model: Annotated[str, "--model"],
    *,
    tasks: Annotated[tuple[str, ...], "NAME"],
    out: Annotated[Path, "FOLDER", "-o", "--out"] = Path("runs/evaluate-mteb"),
    windows: Annotated[int, "--num-windows", at_least(1)] = 4,
    space: Literal["auto", "features"] | Space = "auto",
    batch_size: Annotated[int, at_least(1)] = 8,
    device: str = "auto",
    skip_unreadable: bool = False,
    argv: Sequence[str],
) -> int:
    """Runs tasks of the mteb library, which downloads their data sets.

    Args:
        model: Model folder, run folder, .ckpt of a run, or org/name on the Hugging Face Hub.
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
    from vatt.evaluation.results import report

    _refuse_processes("mteb")
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
    report(results, encoder.extractor.encoder, model, out, ["evaluate", "mteb", *argv])
    return 0


@dataclass(frozen=True)
class _Run:
    """An evaluation of a model, whose results are printed and stored."""

    task: str
    model: str
    data: "EvaluationSet"
    common: EvaluateOptions
    argv: Sequence[str]
    tokenizer: Path | None = None

    @cached_property
    def encoder(self) -> "Encoder":
        from vatt.encoders.loading import load_encoder
        from vatt.preprocess.tokenizer import Tokenizer

        tokenizer = None if self.tokenizer is None else Tokenizer.load(self.tokenizer)
        return load_encoder(
            self.model, device=self.common.device, dtype="float32", tokenizer=tokenizer
        )

    def check_tokenizer(self) -> None:
        """Refuses a model with text that has no tokenizer."""
        if "text" not in self.encoder.modalities:
            return
        try:
            self.encoder.count_tokens("")
        except UserError as error:
            raise UserError(
                f"{self.model} has no tokenizer.json, which says what its word ids stand for: give "
                "--tokenizer"
            ) from error

    def plan(self, *modalities: str) -> "ViewPlan":
        from vatt.evaluation.zero_shot_retrieval import evaluation_plan

        frame_rate = self.common.frame_rate
        if frame_rate is None and self.data.name != "own":
            frame_rate = self.encoder.published_frame_rate
        return evaluation_plan(
            self.encoder,
            num_windows=self.common.windows,
            frame_rate=frame_rate,
            modalities=modalities,
        )

    @property
    def folder(self) -> Path:
        return self.common.out or Path("runs") / f"evaluate-{self.task}-{self.data.name}"

    def report(
        self,
        protocol: dict[str, Any],
        metrics: Any,
        num_items: int,
        faults: Sequence[Fault],
        *,
        num_with: Mapping[str, int] | None = None,
        **more: Any,
    ) -> int:
        """Prints and writes the results, in the first process of several."""
        from vatt.evaluation.results import Results, report
        from vatt.system.ranks import rank

        results = Results(
            task=self.task,
            data_set=self.data.name,
            protocol=protocol,
            data={**self.data.description, **more},
            num_items=num_items,
            num_listed=self.data.num_listed,
            num_with=num_with or {},
            missing=self.data.missing,
            unreadable=faults,
            metrics=metrics,
            seed=self.common.seed,
        )
        if rank() == 0:
            args = ["evaluate", self.task, *self.argv]
            report(results, self.encoder, self.model, self.folder, args)
        return 0


def _refuse_processes(task: str) -> None:
    from vatt.system.ranks import num_processes

    if num_processes() > 1:
        raise UserError(f"evaluate {task} runs in one process: start it without torchrun")


evaluate = {"retrieval": retrieval, "linear": linear, "zero-shot": zero_shot, "mteb": mteb}
