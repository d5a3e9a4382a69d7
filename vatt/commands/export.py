"""`vatt export MODEL OUT`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

FORMATS = ("model", "onnx", "torch")  # those of `vatt.models.export`, which takes torch to import
MODALITIES = ("video", "audio", "text")


def export(argv: Sequence[str]) -> int:
    """`vatt export MODEL OUT`."""
    arguments = _parser().parse_args(argv)
    from vatt.models.export import OPSET, export_model

    report = export_model(
        arguments.model,
        arguments.out,
        formats=arguments.formats,
        modalities=arguments.modalities,
        opset=OPSET if arguments.opset is None else arguments.opset,
        run=arguments.run,
        results=arguments.results,
        licence=arguments.licence,
    )
    print(report)
    if report.lacks_tokenizer:
        print("no tokenizer.json: the model came without one")
    if report.card.licence is None:
        print("README.md names no licence: choose one by --licence before publishing the folder")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vatt export",
        description="Writes a folder for use without vatt: each tower, from raw input to features "
        "and embeddings, as MODALITY.onnx and MODALITY.pt2, compared with the model; with "
        "preprocess.json, and a model card, so that it can be published as it is "
        "(`hf upload org/name OUT`).",
    )
    parser.add_argument(
        "model", help="model folder, .ckpt, run folder, or org/name of the Hugging Face Hub"
    )
    parser.add_argument("out", type=Path, help="new or empty folder")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=FORMATS,
        help="model: config.json and model.safetensors, for vatt; default all",
    )
    parser.add_argument(
        "--modalities", nargs="+", choices=MODALITIES, help="whose towers; default all it has"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX; default 18")
    card = parser.add_argument_group("model card")
    card.add_argument(
        "--run", type=Path, metavar="RUN", help="run folder; default: that of the checkpoint"
    )
    card.add_argument(
        "--results", type=Path, nargs="+", default=(), metavar="FILE", help="of vatt evaluate"
    )
    card.add_argument(
        "--licence", "--license", metavar="ID", help="of the weights, such as apache-2.0"
    )
    return parser
