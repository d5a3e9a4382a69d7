"""The model card: a README.md with a head that the Hugging Face Hub reads.

The card contains facts from the model's configuration, its run and its evaluations only.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml

from vatt.config.spaces import output_widths, search_size, spaces_of
from vatt.errors import UserError
from vatt.models.checkpoint import weights_digest
from vatt.models.training_facts import DECIMALS, TrainingFacts, read_run
from vatt.network.model import VATT
from vatt.system.files import read_json, write_atomically

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
FACTS_KEY = "vatt"  # of the head: what a later export of the folder takes over
SIZES = ("num_queries", "num_candidates")  # beside the metrics of retrieval, to which they belong
WHILE_TRAINING = "validation, while training"  # the split of metrics that the run itself measured


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts of a model card that the model itself does not hold.

    Args:
        facts: Facts of the training.
        measured: Results of `vatt evaluate`.
        licence: Licence of the weights. None: the owner must choose one.
    """

    facts: TrainingFacts
    measured: Sequence["EvalResult"]
    licence: str | None


def read_card(
    model: VATT,
    source: Path | None = None,
    *,
    run: str | os.PathLike[str] | None = None,
    results: Sequence[str | os.PathLike[str]] = (),
    licence: str | None = None,
) -> Card:
    """Collects the known facts of a model.

    Args:
        model: Model that the card describes.
        source: Origin of the model: a folder, whose card is used for facts not given here, or a
            checkpoint of the run. None: the last checkpoint of the run.
        run: Folder of the run that trained the model.
        results: `results.json` files that `vatt evaluate` wrote for this model.
        licence: Licence identifier of the Hub, such as `apache-2.0`.

    Raises:
        UserError: a file cannot be read, or results belong to another model.
    """
    is_checkpoint = source is not None and source.is_file()
    old = _data_of(None if is_checkpoint else source)
    facts = old.get(FACTS_KEY)
    if run is not None:
        facts = read_run(run, source if is_checkpoint else None)
    measured = [one for one in old.eval_results or [] if one.dataset_split != WHILE_TRAINING]
    measured += [one for file in results for one in _read_results(Path(file), model)]
    # where the same was measured again the new value counts
    newest = {(one.task_type, one.dataset_name, one.metric_name): one for one in measured}
    return Card(
        facts=cast(TrainingFacts, facts if isinstance(facts, dict) else {}),
        measured=list(newest.values()),
        licence=licence or old.license,
    )


def write_model_card(folder: Path, model: VATT, card: Card, *, name: str) -> None:
    """Writes `README.md` into a model folder.

    Args:
        folder: Model folder with all other files; the card describes them.
        model: Model in the folder.
        card: Known facts of the model.
        name: Title of the card.
    """
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import Template

    config, files = model.config, sorted(path.name for path in folder.iterdir())
    formats = ["onnx"] if any(name.endswith(".onnx") for name in files) else []
    classifier = config.classifier
    task = f"{classifier.modality}-classification" if classifier else "feature-extraction"
    while_training = list(_while_training(card.facts, task))
    head = ModelCardData(
        model_name=name,
        license=card.licence,
        library_name="vatt",
        pipeline_tag=task,
        tags=["vatt", *config.modalities, *formats],
        eval_results=[*while_training, *card.measured] or None,
    )
    if card.facts:
        head[FACTS_KEY] = dict(card.facts)
    evaluations: dict[tuple[str, str], list[EvalResult]] = {}
    for one in card.measured:
        evaluations.setdefault((one.task_type, one.dataset_name), []).append(one)
    template = Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
    text = template.render(
        title=name,
        head=head.to_yaml(),
        config=config,
        facts=card.facts,
        licence=card.licence,
        files=files,
        while_training=while_training,
        evaluations=evaluations,
        num_parameters=sum(p.numel() for p in model.parameters()),
        output_widths=output_widths,
        audio_spaces=spaces_of(config, "audio"),
        search_size=search_size,
    )
    checked = ModelCard(text)  # which reads the head back
    write_atomically(folder / CARD, str(checked).encode())


def _data_of(folder: Path | None) -> "ModelCardData":
    """Head of the card in a folder; empty if there is no card."""
    from huggingface_hub import ModelCard, ModelCardData

    if folder is None or not (folder / CARD).is_file():
        return ModelCardData()
    text = (folder / CARD).read_text(encoding="utf-8")
    if not text.startswith("---"):  # a text without a head
        return ModelCardData()
    try:
        return cast("ModelCardData", ModelCard(text).data)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the head of {folder / CARD} cannot be read: {reason}") from error


def _while_training(facts: TrainingFacts, task: str) -> Iterable["EvalResult"]:
    from huggingface_hub import EvalResult

    name = facts.get("validation_set", "validation set of the run")
    measured = facts.get("validation", {})
    for metric, value in measured.items():
        direction, _, column = metric.rpartition("/")
        if column in SIZES:
            continue
        yield EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=name,
            dataset_split=WHILE_TRAINING,
            metric_type=column,
            metric_name=metric,
            metric_value=value,
            metric_args=_sizes({n: measured.get(f"{direction}/{n}") for n in SIZES}),
        )


def _sizes(columns: Mapping[str, float | None]) -> dict[str, float] | None:
    """Numbers of queries and candidates in a row of retrieval metrics; None if it lacks them."""
    return {n: value for n in SIZES if (value := columns.get(n)) is not None} or None


def _read_results(path: Path, model: VATT) -> list["EvalResult"]:
    """Results of `vatt evaluate` for a model."""
    from huggingface_hub import EvalResult

    content = read_json(path)
    try:
        digest, rows = content["model"]["sha256"], content["metrics"]
        task, data_set = content["task"], content["data_set"]
    except (LookupError, TypeError) as error:
        raise UserError(f"{path} is not the results.json of `vatt evaluate`") from error
    if digest != weights_digest(model):
        raise UserError(
            f"{path} was measured with other weights ({content['model'].get('source')}): evaluate "
            "this model, or leave the file out"
        )
    return [
        EvalResult(
            task_type=task,
            dataset_type=data_set,
            dataset_name=data_set,
            metric_type=column,
            metric_name=f"{row}, {column}",
            metric_value=round(value, DECIMALS),
            metric_args=_sizes(columns),
        )
        for row, columns in rows.items()
        for column, value in columns.items()
        if value is not None and column not in SIZES
    ]
