"""What the contrastive loss and cached accumulation cost: memory and time, as ratios.

    python scripts/benchmarks/bench_loss.py                # a few minutes on two cores
    python scripts/benchmarks/bench_loss.py --quick        # small sizes, to see that it works

Memory on a CPU is the process's largest resident size (Linux) over what it was before; on CUDA,
torch's own count. Each measurement runs in a process of its own.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vatt import ContrastiveLoss, LossConfig, preset
from vatt.batch import Batch, MicroBatches
from vatt.network.contrast import Sides, contrast, contrast_sigmoid
from vatt.network.model import VATT
from vatt.system.ranks import exchange_layout, gather_rows
from vatt.training.accumulation import forward_cached

MIB = 2**20
LOCAL_CLIPS, CANDIDATES, WIDTH = 256, 1, 512  # of one rank; embeddings of the video-audio space


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured.

    Args:
        columns: Clips of all ranks, `G`.
        repeats: Runs of which the fastest counts.
        parts: Numbers of micro-batches.
        micro_batch_size: Clips of each.
        network: Preset of the network.
    """

    columns: tuple[int, ...] = (4096, 8192, 16384, 32768)
    repeats: int = 3
    parts: tuple[int, ...] = (1, 4)
    micro_batch_size: int = 64
    network: str = "tiny"


QUICK = Sizes(columns=(256, 512), repeats=1, parts=(1, 2), micro_batch_size=4)


class Peak:
    """The most memory that a block of code takes beyond what was there before, in bytes.

    On a CPU it needs `return_freed_memory`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.num_bytes = 0

    def __enter__(self) -> "Peak":
        """Begins to count."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        """Says how much it was."""
        if self.device.type == "cuda":
            self.num_bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self.num_bytes = _status("VmHWM") - self._before


def return_freed_memory() -> None:
    """Has the C library map every tensor by itself: what is freed is at once no longer resident."""
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    ctypes.CDLL(None).mallopt(mmap_threshold, 4096)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def measure_loss(form: str, num_columns: int, repeats: int, device_name: str) -> dict[str, float]:
    """Forward and backward of one rank's rows against the gathered rows of all."""
    return_freed_memory()
    device = torch.device(device_name)
    generator = torch.Generator(device).manual_seed(0)

    def unit(*shape: int) -> Tensor:
        rows = torch.randn(*shape, generator=generator, device=device)
        return F.normalize(rows, dim=-1).requires_grad_()

    everyone = Sides(
        unit(num_columns, WIDTH),
        unit(num_columns, CANDIDATES, WIDTH),
        torch.ones(num_columns, dtype=torch.bool, device=device),
        torch.ones(num_columns, CANDIDATES, dtype=torch.bool, device=device),
    )
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)

    def step() -> None:
        local = Sides(*(side[:LOCAL_CLIPS] for side in everyone))
        if form == "sigmoid":
            rows = contrast_sigmoid(local, everyone, 0, scale, scale - 10)
        else:
            rows = contrast(local, everyone, 0, scale, symmetric=form == "symmetric")
        rows.losses.mean().backward()

    def forget() -> None:
        everyone.first_BD.grad = everyone.second_BKD.grad = None

    step()  # threads, handles, code
    forget()
    with Peak(device) as peak:
        step()
    gradients = 2 * everyone.first_BD.nbytes  # they stay: not the loss's
    forget()
    return {
        "seconds": fastest(step, repeats, device),
        "mib": (peak.num_bytes - gradients) / MIB,
    }


def fastest(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_gather(num_columns: int, repeats: int) -> dict[str, float]:
    """Gathering both sides' rows in two gloo processes, forward and backward."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder), num_columns, repeats)
        context = multiprocessing.get_context("spawn")
        ranks = [context.Process(target=_gather, args=(rank, *arguments)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return {"seconds": float((Path(folder) / "seconds").read_text())}


def _gather(rank: int, folder: Path, num_columns: int, repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=2
    )
    rows = torch.randn(num_columns // 2, WIDTH, requires_grad=True)

    def step() -> None:
        layout = exchange_layout(len(rows), CANDIDATES)
        for _ in range(2):  # first and second modality
            gather_rows(rows, layout).sum().backward()

    step()
    seconds = fastest(step, repeats, rows.device)
    if rank == 0:
        (folder / "seconds").write_text(str(seconds))
    dist.destroy_process_group()


def measure_accumulation(num_parts: int, sizes: Sizes, device_name: str) -> dict[str, float]:
    """A step of `num_parts` micro-batches: memory beyond weights and raw clips, and seconds."""
    return_freed_memory()
    device = torch.device(device_name)
    torch.manual_seed(0)
    config = preset(sizes.network)
    network = VATT(config).to(device).train()
    loss = ContrastiveLoss(LossConfig())
    parts = tuple(_clips(config, sizes.micro_batch_size) for _ in range(num_parts))
    batches = MicroBatches(parts=parts, device=device)

    def cached() -> None:
        loss(forward_cached(network, batches), batches).total.backward()
        network.zero_grad()

    def plain() -> None:
        loss(network(parts[0].to(device)), parts[0]).total.backward()
        network.zero_grad()

    cached()
    with Peak(device) as peak:
        cached()
    result = {"mib": peak.num_bytes / MIB, "seconds": fastest(cached, sizes.repeats, device)}
    if num_parts == 1:
        plain()
        with Peak(device) as peak:
            plain()
        result |= {"plain_mib": peak.num_bytes / MIB}
        result |= {"plain_seconds": fastest(plain, sizes.repeats, device)}
    return result


def _clips(config: Any, count: int) -> Batch:
    video, size = config.video, config.video.image_size
    return Batch(
        video=torch.randint(256, (count, video.num_frames, size, size, 3), dtype=torch.uint8),
        audio=torch.rand(count, config.audio.num_samples) * 2 - 1,
        text=torch.randint(1, 9, (count, 5, config.text.max_words)),
    )


def in_a_process(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What a function measures where nothing was before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Memory and time of loss and cached accumulation.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    result: dict[str, Any] = {"loss": {}, "gather": {}, "accumulation": {}}
    print(f"loss: {LOCAL_CLIPS} local rows against G, {WIDTH} wide, forward and backward")
    for form in ("asymmetric", "symmetric", "sigmoid"):
        for num_columns in sizes.columns:
            one = in_a_process(measure_loss, form, num_columns, sizes.repeats, options.device)
            result["loss"][f"{form} {num_columns}"] = one
            matrix = LOCAL_CLIPS * num_columns * CANDIDATES * 4 / MIB
            print(
                f"  {form:10} G {num_columns:6}  {one['seconds'] * 1e3:8.1f} ms  "
                f"{one['mib']:7.1f} MiB beyond embeddings and gradients "
                f"(one matrix of scores: {matrix:.0f} MiB)"
            )
    print("gather of both sides, two processes, forward and backward")
    for num_columns in sizes.columns:
        one = measure_gather(num_columns, sizes.repeats)
        result["gather"][str(num_columns)] = one
        print(f"  G {num_columns:6}  {one['seconds'] * 1e3:8.1f} ms")
    print(f"cached accumulation: {sizes.network}, micro-batches of {sizes.micro_batch_size} clips")
    for num_parts in sizes.parts:
        one = in_a_process(measure_accumulation, num_parts, sizes, options.device)
        result["accumulation"][str(num_parts)] = one
        clips = num_parts * sizes.micro_batch_size
        print(f"  {clips:4} clips  {one['mib']:7.1f} MiB  {clips / one['seconds']:6.1f} clips/s")
    one = result["accumulation"][str(sizes.parts[0])]
    clips = sizes.micro_batch_size
    print(
        f"  {clips:4} clips  {one['plain_mib']:7.1f} MiB  "
        f"{clips / one['plain_seconds']:6.1f} clips/s, without micro-batches"
    )
    if options.json:
        options.json.write_text(f"{json.dumps(result, indent=2)}\n")


if __name__ == "__main__":
    main()
