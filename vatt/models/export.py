"""Export of models: each tower as ONNX and for `torch.export`, and the model itself."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
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
from vatt.models.checkpoint import load_model, save_model, tokenizer_of
from vatt.models.export_towers import Tower, parity_inputs, random_input, tower_outputs
from vatt.models.preprocess_json import BATCH, PREPROCESS, preprocess_constants, preprocess_json
from vatt.models.training_facts import find_model
from vatt.network.model import VATT
from vatt.system.extras import load_extra
from vatt.system.files import atomic_folder, write_atomically

Format = Literal["model", "onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18  # the lowest that PyTorch's exporter writes by itself; every current runtime reads it
TOLERANCE = 1e-4  # largest difference from the model, as a share of the largest value
MOST_OF_A_REASON = 300  # letters of another package's message
CHATTY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


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
        return "\n".join([*_parity_table(self.parity), *self._files()])

    def _files(self) -> list[str]:
        width = max(map(len, self.num_bytes))
        sizes = (f"  {n:{width}}  {size / 1e6:10,.2f} MB" for n, size in self.num_bytes.items())
        return [f"{self.out}:", *sizes]


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
    _check_free(folder)
    path, own_run = find_model(source)
    model, tokenizer = load_model(path), tokenizer_of(path)
    towers = [Tower(model, name) for name in _chosen(modalities, model)]
    card = read_card(model, path, run=run or own_run, results=results, licence=licence)
    with atomic_folder(folder) as partial:
        if tokenizer is not None:
            tokenizer.save(partial / "tokenizer.json")
        if "model" in formats:
            save_model(model, partial)
        parity: list[Parity] = []
        for tower in towers:
            parity += _export_tower(model, tower, partial, formats, opset, tolerance)
        _write_constants(model, partial, tokenizer is not None, towers, formats)
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
        loaded = load_extra(name, UserError(f"{need}, or leave onnx out of --formats"))
    return loaded


def _chosen(modalities: Sequence[str] | None, model: VATT) -> tuple[str, ...]:
    for name in modalities or ():
        model.config.check_modality(name)
    return model.config.modalities if modalities is None else tuple(dict.fromkeys(modalities))


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give another folder, or delete it")


def _export_tower(
    model: VATT,
    tower: Tower,
    folder: Path,
    formats: Sequence[str],
    opset: int,
    tolerance: float,
) -> list[Parity]:
    """Writes the files of one tower and compares them with the model.

    Raises:
        UserError: the outputs differ too much.
    """
    if not {*SUFFIXES} & {*formats}:
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
        program = _traced(tower, random_input(config, name, 2))  # 1 would become a fixed length
        for form in (form for form in SUFFIXES if form in formats):
            path = folder / f"{name}{SUFFIXES[form]}"
            if form == "torch":
                _write_torch(program, path)
                actual = _run_torch(path, inputs)
            else:
                _write_onnx(program, path, name, [*output_widths(config, name)], opset)
                actual = _run_onnx(path, inputs, opset)
            parity += [
                Parity(modality=name, output=output, form=form, error=error)
                for output, error in _errors(expected, actual).items()
            ]
    _check_parity(parity, tolerance)
    return parity


def _traced(tower: Tower, raw: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(tower, (raw,), dynamic_shapes=({0: Dim(BATCH)},))


def _write_torch(program: ExportedProgram, path: Path) -> None:
    # where the disk is full torch's writers of files end the process, or name no file
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(path, buffer.getbuffer())


def _write_onnx(
    program: ExportedProgram, path: Path, modality: str, outputs: list[str], opset: int
) -> None:
    """Writes an ONNX file; weights above 2 GB go into a second file."""
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
            f"try {OPSET}: {' '.join(str(error).split())[:MOST_OF_A_REASON]}"
        ) from error
    names = [output.name for output in session.get_outputs()]
    return [
        {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
        for values in runs
    ]


def _errors(
    expected: Sequence[dict[str, Tensor]], actual: Sequence[dict[str, Tensor]]
) -> dict[str, float]:
    """Largest difference of each output over all inputs, relative to its largest value."""
    return {
        name: float(
            torch.stack(
                [
                    _relative_error(wanted[name], got[name])
                    for wanted, got in zip(expected, actual, strict=True)
                ]
            ).amax()  # NaN where one is
        )
        for name in expected[0]
    }


def _relative_error(wanted: Tensor, got: Tensor) -> Tensor:
    scale = wanted.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return (got - wanted).abs().amax() / scale


def _check_parity(parity: Sequence[Parity], tolerance: float) -> None:
    too_far = [one for one in parity if not one.error <= tolerance]
    if too_far:
        named = ", ".join(f"{p.modality} {p.output} ({p.form}) {p.error:.1e}" for p in too_far)
        raise UserError(
            f"nothing is written: these differ from the model by more than {tolerance:.0e} of its "
            f"largest value: {named}"
        )


def _parity_table(parity: Sequence[Parity]) -> list[str]:
    """Lines of a table with a row per output and a column per format."""
    if not parity:
        return []
    forms = list(dict.fromkeys(one.form for one in parity))
    errors = {(one.modality, one.output, one.form): one.error for one in parity}
    rows = dict.fromkeys((one.modality, one.output) for one in parity)
    head = f"{'tower':8}{'output':10}" + "".join(f"{form:>10}" for form in forms)
    lines = [
        f"{modality:8}{output:10}"
        + "".join(f"{errors[modality, output, form]:10.1e}" for form in forms)
        for modality, output in rows
    ]
    return ["largest difference from the model, as a share of its largest value", head, *lines]


def _write_constants(
    model: VATT, folder: Path, has_tokenizer: bool, towers: Sequence[Tower], formats: Sequence[str]
) -> None:
    """`preprocess.json`, with the names of the towers' files."""
    constants = preprocess_constants(model.config, has_tokenizer=has_tokenizer)
    for name in (tower.modality for tower in towers):
        files = {form: f"{name}{end}" for form, end in SUFFIXES.items() if form in formats}
        if files:
            constants[name]["files"] = files
    write_atomically(folder / PREPROCESS, preprocess_json(constants))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output of PyTorch's exporters; errors are raised."""
    loggers = [logging.getLogger(name) for name in CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # of torch.export's own use of its tree functions (torch 2.13)
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
