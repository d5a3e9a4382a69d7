"""Export of models: each tower as ONNX and for `torch.export`, and the model itself."""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from vatt.config.spaces import output_widths
from vatt.errors import UserError
from vatt.models.card import Card, read_card, write_model_card
from vatt.models.checkpoint import load_model, save_model, tokenizer_of, weights_digest
from vatt.models.export_towers import Tower, parity_inputs, random_input, tower_outputs
from vatt.models.preprocess_json import BATCH, write_preprocess_json
from vatt.models.training_facts import find_model
from vatt.network.model import VATT
from vatt.system.extras import load_extra
from vatt.system.files import atomic_folder, write_atomically
from vatt.system.tables import text_table

Format = Literal["model", "onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
# entries of an ONNX file that say which model it is of
CONFIG_ENTRY, DIGEST_ENTRY = "vatt_config", "vatt_sha256"
OPSET = 18  # the lowest that PyTorch's exporter writes by itself; every current runtime reads it
TOLERANCE = 1e-4  # largest difference from the model, as a share of the largest value


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Difference between an exported output and that of the model.

    Args:
        modality: Modality of the tower.
        output: `features`, `va`, …
        form: `onnx` or `torch`.
        error: Largest difference over all inputs, relative to the model's largest value.
    """

    modality: str
    output: str
    form: str
    error: float


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Report of an export.

    Args:
        out: Folder of the export.
        parity: Difference of each output in each format.
        num_bytes: Size of each file in bytes.
        card: Facts in the model card.
        lacks_tokenizer: Whether the model reads text and came without a tokenizer.
    """

    out: Path
    parity: tuple[Parity, ...]
    num_bytes: dict[str, int]
    card: Card
    lacks_tokenizer: bool

    def __str__(self) -> str:
        """Tables of parity and of files."""
        errors: dict[tuple[str, str], list[str]] = {}
        for one in self.parity:
            errors.setdefault((one.modality, one.output), []).append(f"{one.error:.1e}")
        forms = dict.fromkeys(one.form for one in self.parity)
        parity = text_table(
            [("tower", "output", *forms), *((*names, *row) for names, row in errors.items())],
            num_left=2,
        )
        title = "largest difference from the model, as a share of its largest value\n"
        files = [(name, f"{size / 1e6:,.2f} MB") for name, size in self.num_bytes.items()]
        sizes = f"{self.out}:\n{text_table(files, indent='  ')}"
        return f"{title}{parity}\n{sizes}" if errors else sizes


def export_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    formats: Sequence[Format] = FORMATS,
    modalities: Sequence[str] | None = None,
    opset: int = OPSET,
    run: str | os.PathLike[str] | None = None,
    results: Sequence[str | os.PathLike[str]] = (),
    licence: str | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Exports a model to a folder that can be used without vatt, and published as it is.

    The folder always contains `preprocess.json`, the model card `README.md` and, if there is one,
    `tokenizer.json`. `out` appears only after all files were written and compared with the model,
    on noise in batches of 1 and 3 and on captions of several lengths.

    Args:
        source: Model folder, checkpoint, run folder (its last one), or `org/name` on the Hub.
        out: New or empty folder.
        formats: `model`: config.json and model.safetensors; `onnx`: MODALITY.onnx; `torch`:
            MODALITY.pt2 for `torch.export.load`. Towers are float32 and accept any batch size.
        modalities: Modalities whose towers to export. None: all of the model.
        opset: Version of the ONNX operator set.
        run: Folder of the run that trained the model, for the card. None: the run of the
            checkpoint.
        results: `results.json` files of `vatt evaluate` for the card.
        licence: Licence identifier of the Hub for the card, such as `apache-2.0`. None: unchanged.
        tolerance: Largest allowed difference from the model, relative to its largest value.

    Raises:
        UserError: a package is missing, `out` is not empty, the model lacks a modality, or an
            exported output differs too much.
        CheckpointError: there is no model at `source`.
    """
    folder = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow links
    _check_formats(formats, opset)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give another folder, or delete it")
    path, own_run = find_model(source)
    model, tokenizer = load_model(path), tokenizer_of(path)
    names = model.config.modalities if modalities is None else dict.fromkeys(modalities)
    towers = [Tower(model, name) for name in names]
    card = read_card(model, path, run=run or own_run, results=results, licence=licence)
    with atomic_folder(folder) as partial:
        if tokenizer is not None:
            tokenizer.save(partial / "tokenizer.json")
        if "model" in formats:
            save_model(model, partial)
        forms = [form for form in SUFFIXES if form in formats]
        entries = {
            CONFIG_ENTRY: json.dumps(model.config.to_dict()),
            DIGEST_ENTRY: weights_digest(model) if "onnx" in forms else "",
        }
        parity = [
            one
            for tower in towers
            for one in _export_tower(model, tower, partial, forms, opset, tolerance, entries)
        ]
        files = {
            tower.modality: {form: f"{tower.modality}{SUFFIXES[form]}" for form in forms}
            for tower in towers
        }
        write_preprocess_json(
            partial, model.config, has_tokenizer=tokenizer is not None, files=files
        )
        write_model_card(partial, model, card, name=folder.name)
        sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    return ExportReport(
        out=Path(out),
        parity=tuple(parity),
        num_bytes=sizes,
        card=card,
        lacks_tokenizer="text" in model.config.modalities and tokenizer is None,
    )


def _check_formats(formats: Sequence[str], opset: int) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(
            f"formats are some of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}"
        )
    if "onnx" in formats:
        _load_onnx_packages()
        newest = import_module("onnx").defs.onnx_opset_version()
        if not OPSET <= opset <= newest:
            raise UserError(f"opset must be from {OPSET} to {newest}, got {opset}")


def _load_onnx_packages() -> ModuleType:
    """Imports onnxruntime, after checking all packages that write and run ONNX.

    Raises:
        UserError: one of the packages is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        need = f'ONNX needs the package {name}: pip install "vatt[export]"'
        loaded = load_extra(name, UserError(f"{need}, or leave onnx out of --format"))
    return loaded


def _export_tower(
    model: VATT,
    tower: Tower,
    folder: Path,
    forms: Sequence[str],
    opset: int,
    tolerance: float,
    entries: Mapping[str, str],
) -> list[Parity]:
    """Writes the files of one tower and compares them with the model.

    Raises:
        UserError: the outputs differ too much.
    """
    if not forms:
        return []
    name, config = tower.modality, model.config
    inputs = parity_inputs(config, name)
    with torch.inference_mode():
        # first of all: what is computed once and kept must not be made of a tracer's tensors
        expected = [
            tower_outputs(model, model.head, name, model.encode(name, raw)) for raw in inputs
        ]
    parity = []
    with _quiet():
        sample = random_input(config, name, 2)  # 1 would become a fixed length
        with torch.no_grad():
            program = torch.export.export(tower, (sample,), dynamic_shapes=({0: Dim(BATCH)},))
        for form in forms:
            path = folder / f"{name}{SUFFIXES[form]}"
            if form == "torch":
                # where the disk is full torch's writers of files end the process, or name no file
                buffer = io.BytesIO()
                torch.export.save(program, buffer)
                write_atomically(path, buffer.getvalue())
                actual = _run_torch(path, inputs)
            else:
                outputs = [*output_widths(config, name)]
                _write_onnx(program, path, name, outputs, opset, entries)
                actual = _run_onnx(path, inputs, opset)
            parity += [
                Parity(
                    modality=name,
                    output=output,
                    form=form,
                    error=_largest_error(
                        [a[output] for a in expected], [a[output] for a in actual]
                    ),
                )
                for output in expected[0]
            ]
    too_far = [one for one in parity if not one.error <= tolerance]
    if too_far:
        named = ", ".join(f"{p.modality} {p.output} ({p.form}) {p.error:.1e}" for p in too_far)
        raise UserError(
            f"nothing is written: these differ from the model by more than {tolerance:.0e} of its "
            f"largest value: {named}"
        )
    return parity


def _write_onnx(
    program: ExportedProgram,
    path: Path,
    modality: str,
    outputs: list[str],
    opset: int,
    entries: Mapping[str, str],
) -> None:
    """Writes an ONNX file with its entries; weights above 2 GB go into a second file."""
    written = torch.onnx.export(
        program,
        input_names=[modality],
        output_names=outputs,
        opset_version=opset,
        dynamic_shapes=({0: BATCH},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert written is not None
    written.model.metadata_props.update(entries)
    try:
        written.save(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _run_torch(path: Path, inputs: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    module = torch.export.load(path).module()
    with torch.inference_mode():
        return [module(raw) for raw in inputs]


def _run_onnx(path: Path, inputs: Sequence[Tensor], opset: int) -> list[dict[str, Tensor]]:
    onnxruntime = _load_onnx_packages()
    kinds = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal: errors are raised, too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        runs = [session.run(None, {entry.name: raw.numpy()}) for raw in inputs]
    except (kinds.Fail, kinds.InvalidGraph, kinds.NotImplemented, kinds.RuntimeException) as error:
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} does not run {path.name} with opset {opset}, "
            f"try {OPSET}: {' '.join(str(error).split())[:300]}"
        ) from error
    names = [output.name for output in session.get_outputs()]
    return [
        {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
        for values in runs
    ]


def _largest_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Largest difference over all inputs, relative to the largest value; NaN if a value is NaN."""
    tiny = torch.finfo(torch.float32).tiny
    errors = [
        (got - wanted).abs().amax() / wanted.abs().amax().clamp(min=tiny)
        for wanted, got in zip(expected, actual, strict=True)
    ]
    return float(torch.stack(errors).amax())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output of PyTorch's exporters; errors are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # of torch.export's own use of its tree functions (torch 2.13)
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logging.disable(disabled)
