"""Length of a training run, and of its warm-up and intervals, where the user does not set them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vatt.config.shipped import recipe_and_own
from vatt.runs.classifier_defaults import MAX_PASSES, LabelledSet

STEPS, SECONDS = "trainer.max_steps", "run.time_budget_seconds"
BATCH = "data.init_args.batch_size"
WARMUP = "model.init_args.schedule.warmup_steps"
PARTS = (WARMUP, "trainer.val_check_interval", "run.checkpoint_every_n_steps")


def run_length(
    args: Sequence[str], given: Mapping[str, Any], files: LabelledSet | None
) -> tuple[dict[str, int], str]:
    """Settings of the length of a run that follow from its files or from its number of steps.

    With `run.max_passes`, few files take fewer steps and a smaller batch than the recipe has. Its
    warm-up and the intervals of validation and checkpoints then keep their shares of the run; in
    other recipes only a warm-up that is as long as the run does. What the user sets does not
    change, and a time that the user sets counts in place of passes.

    Args:
        args: The subcommand and its arguments, with paths of configurations.
        given: Values that the arguments set, by dotted key.
        files: The labelled training files. None: the run has none.

    Returns:
        The settings by dotted key, and a line for the user, or "".
    """
    recipe, own = recipe_and_own(args)
    full, steps, passes = recipe.get(STEPS), given.get(STEPS), given.get(MAX_PASSES)
    if args[0] != "fit" or not isinstance(full, int) or not isinstance(steps, int):
        return {}, ""
    length: dict[str, int] = {}
    line = ""
    batch = given.get(BATCH)
    if passes and files is not None and files.num_files and isinstance(batch, int):
        if BATCH not in own and torch.cuda.device_count() <= 1:  # else the GPUs must share it
            batch = length[BATCH] = min(batch, files.num_files)
        most = math.ceil(passes * files.num_files / batch)
        is_short = most < steps and STEPS not in own and SECONDS not in own
        steps = length[STEPS] = most if is_short else steps
        line = f"{files.num_files:,} files: {steps:,} steps of {batch}"
        line += f", {passes} passes over the files; --steps sets another number" * is_short
    for name in PARTS:
        part = given.get(name)
        if name in own or not isinstance(part, int):
            continue
        if steps < full and (passes or (name == WARMUP and part >= steps)):
            length[name] = max(part * steps // full, int(name != WARMUP))
            line = line or f"{steps:,} steps: a warm-up of {length[name]} in place of {part}"
    return length, line
