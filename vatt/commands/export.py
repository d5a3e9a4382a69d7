"""The command `vatt export`: a folder for use without vatt."""

from pathlib import Path
from typing import Annotated, Literal

Format = Literal["model", "onnx", "torch"]
Modality = Literal["video", "audio", "text"]


def export(
    model: str,
    out: Path,
    *,
    formats: tuple[Format, ...] = ("model", "onnx", "torch"),
    modalities: tuple[Modality, ...] | None = None,
    licence: Annotated[str | None, "--licence", "--license", "ID"] = None,
    results: Annotated[tuple[Path, ...], "FILE"] = (),
    run: Path | None = None,
    opset: int = 18,
) -> int:
    """Writes a folder for use without vatt.

    It holds each tower, from raw input to features and embeddings, as MODALITY.onnx and
    MODALITY.pt2, compared with the model; preprocess.json; and a model card, so that it can be
    published as it is (`hf upload org/name OUT`).

    Args:
        model: Model folder, .ckpt, run folder, or org/name of the Hugging Face Hub.
        out: New or empty folder.
        formats: Files to write; model: config.json and model.safetensors, for vatt.
        modalities: Towers to export. None: all.
        licence: Of the weights, such as apache-2.0, for the model card.
        results: Written by `vatt evaluate`, for the model card.
        run: Run folder, for the model card. None: that of the checkpoint.
        opset: Version of ONNX's operators.
    """
    from vatt.models.export import export_model

    report = export_model(
        model,
        out,
        formats=formats,
        modalities=modalities,
        opset=opset,
        run=run,
        results=results,
        licence=licence,
    )
    print(report)
    if report.lacks_tokenizer:
        print("no tokenizer.json: the model came without one")
    if report.card.licence is None:
        print("README.md names no licence: choose one by --licence before publishing the folder")
    return 0
