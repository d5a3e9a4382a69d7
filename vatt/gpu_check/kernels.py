"""Stage `profile`: kernels by name, and the share of time in which the device has none to run."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from vatt.gpu_check.figures import Row, wait_for
from vatt.gpu_check.place import Place
from vatt.gpu_check.recipes import Recipe, train

WARM_UP, STEPS = 3, 2
MOST_KERNELS = 25  # that are listed
NAME_LENGTH = 80
TRACE = "trace.json.gz"  # for chrome://tracing or https://ui.perfetto.dev


class ProfileSteps(Callback):
    """Profiles some steps after the warm-up.

    Args:
        trace: File to write the trace to.
    """

    def __init__(self, trace: Path) -> None:
        self.trace = trace
        self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Starts after the warm-up, and stops when the device has done the last step."""
        wait_for(pl_module.device)
        if batch_idx == WARM_UP - 1:
            self.profile.start()
        elif batch_idx == WARM_UP + STEPS - 1:
            self.profile.stop()
            self.profile.export_chrome_trace(str(self.trace))


def measure_kernels(place: Place) -> Iterator[Row]:
    """Two steps of the Medium recipe; on a CPU operations in place of kernels."""
    recipe = Recipe(config="pretrain_ma_medium", batch_size=64, max_steps=WARM_UP + STEPS)
    if place.quick:
        recipe = Recipe(config="tiny", batch_size=8, max_steps=WARM_UP + STEPS)
    steps = ProfileSteps(place.out / TRACE)
    train(recipe, place.device, [steps])
    on_gpu = place.device.type == "cuda"
    kind = "CUDA" if on_gpu else "CPU"
    events = [event for event in steps.profile.events() or [] if event.device_type.name == kind]
    seconds: Counter[str] = Counter()
    for event in events:
        duration = event.device_time_total if on_gpu else event.self_cpu_time_total
        seconds[event.name] += duration / 1e6
    case = recipe.config
    for name, total in seconds.most_common(MOST_KERNELS):
        yield Row(case, name[:NAME_LENGTH], total / STEPS * 1e3, "ms per step")
    yield Row(case, "kernels" if on_gpu else "operations", len(events) / STEPS, "per step")
    if not on_gpu:
        return
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    yield Row(case, "share of time without a kernel", idle_share(spans))
    copies = sum("DtoH" in event.name for event in events) / STEPS
    yield Row(case, "copies to the host", copies, "per step")
    fast = sum("flash" in name or "cudnn" in name for name in map(str.lower, seconds))
    yield Row(case, "flash or cuDNN kernels of attention", fast, at_least=1)


def idle_share(spans: list[tuple[float, float]]) -> float:
    """Share, in [0, 1], of the time from the first start to the last end that no span covers."""
    spans = sorted(spans)
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1.0 - busy / (reached - spans[0][0])
