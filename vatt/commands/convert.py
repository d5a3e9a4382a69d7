"""The command `vatt convert`: an official checkpoint becomes a model folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vatt.system.files import read_json


def convert(argv: Sequence[str]) -> int:
    """`vatt convert CHECKPOINT OUT`."""
    parser = argparse.ArgumentParser(
        "vatt convert",
        description="Official TensorFlow checkpoint, pre-trained or fine-tuned → model folder.",
    )
    parser.add_argument("checkpoint", type=Path, help="prefix (…/ckpt-7), a file of it, or folder")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument(
        "--settings", type=Path, metavar="JSON", help="official configuration, for other sizes"
    )
    parser.add_argument(
        "--optimizer", action="store_true", help="take the optimiser's moments along"
    )
    parser.add_argument(
        "--vocabulary", type=Path, metavar="TXT", help="official list of words → tokenizer.json"
    )
    arguments = parser.parse_args(argv)
    from vatt.models.checkpoint import read_config
    from vatt.official.convert import convert as convert_checkpoint

    settings = arguments.settings and read_json(arguments.settings)
    report = convert_checkpoint(
        arguments.checkpoint,
        arguments.out,
        settings=settings,
        with_optimizer=arguments.optimizer,
        vocabulary=arguments.vocabulary,
    )
    print(report.summary())
    print(f"{arguments.out}: config.json, model.safetensors, conversion.json with every variable")
    if arguments.vocabulary is None and "text" in read_config(arguments.out).modalities:
        print("no tokenizer.json: give the list of words that its ids stand for by --vocabulary")
    return 0
