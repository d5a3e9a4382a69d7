"""The command `vatt export`: a folder for use without vatt."""

from pathlib import Path
from typing import Annotated, Literal

Format = Literal["model", "onnx", "torch"]
Modality = Literal["video", "audio", "text"]


def export(
    model: Annotated[str, "--model"],
    out: Annotated[Path, "-o", "--out"],
    *,
    formats: Annotated[tuple[Format, ...], "--format"] = ("model", "onnx", "torch"),
    modalities: Annotated[tuple[Modality, ...] | None, "--modality"] = None,
    licence: Annotated[str | None, "--licence", "--license", "ID"] = None,
    results: Annotated[tuple[Path, ...], "FILE"] = (),
    run: Path | None = None,
    opset: int = 18,
    push_to_hub: Annotated[str | None, "ORG/NAME"] = None,
) -> int:
    """Exports a model to a folder that can be used without vatt.

    The folder contains each tower, from raw input to features and embeddings, as MODALITY.onnx and
    MODALITY.pt2; preprocess.json, which describes the input; and a model card. The outputs of the
    towers are compared with those of the model. The folder can be published as it is, by
    --push-to-hub or later (`hf upload org/name OUT`).

    Args:
        model: Model folder, .ckpt, run folder, or org/name on the Hugging Face Hub.
        out: New or empty folder.
        formats: Files to write: towers (onnx, torch), and config.json with model.safetensors for
            vatt (model).
        modalities: Towers to export. None: all.
        licence: Licence of the weights for the model card, such as apache-2.0. None: none is
            named.
        results: Files written by `vatt evaluate`, for the model card. None: no results.
        run: Run folder to describe in the model card. None: the run of the checkpoint.
        opset: Version of the ONNX operator set.
        push_to_hub: Name on the Hugging Face Hub under which to publish the folder, created if
            missing; needs a token that may write (`hf auth login`). None: it is not published.
    """
    from vatt.errors import UserError
    from vatt.models.export import export_model
    from vatt.models.hub import publish_folder, repository_name

    if push_to_hub is not None:
        repository_name(push_to_hub)
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
    if push_to_hub is not None:
        try:
            print(f"published: {publish_folder(out, push_to_hub)}")
        except UserError as error:
            remedy = f"{out} is complete, `hf upload {push_to_hub} {out}` publishes it later"
            raise UserError(f"{error}; {remedy}") from error
    return 0
