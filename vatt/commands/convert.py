"""The command `vatt convert`: an official checkpoint becomes a model folder."""

from pathlib import Path
from typing import Annotated

from vatt.system.files import read_json


def convert(
    checkpoint: Path,
    out: Annotated[Path, "-o", "--out"],
    *,
    vocabulary: Annotated[Path | None, "TXT"] = None,
    settings: Annotated[Path | None, "JSON"] = None,
    optimizer: bool = False,
) -> int:
    """Converts an official TensorFlow checkpoint, pre-trained or fine-tuned, to a model folder.

    Args:
        checkpoint: Checkpoint prefix (…/ckpt-7), one of its files, or the folder of the files.
        out: Model folder to create.
        vocabulary: Official word list, which becomes tokenizer.json. None: no tokenizer.
        settings: Official configuration, needed for sizes that were not published. None: found by
            the sizes.
        optimizer: Also convert the moments of the optimiser.
    """
    from vatt.models.checkpoint import read_config
    from vatt.official.convert import convert as convert_checkpoint

    report = convert_checkpoint(
        checkpoint,
        out,
        settings=None if settings is None else read_json(settings),
        with_optimizer=optimizer,
        vocabulary=vocabulary,
    )
    print(report.summary())
    print(f"{out}: config.json, model.safetensors, conversion.json with every variable")
    if vocabulary is None and "text" in read_config(out).modalities:
        print("no tokenizer.json: give the word list of the training captions by --vocabulary")
    return 0
