"""Stage `loss`: memory and time of the contrastive loss over the clips of many ranks."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.gpu_check.figures import MIB, Row, median_seconds, peak_bytes, return_freed_memory
from vatt.gpu_check.place import Place
from vatt.network.contrast import Sides, contrast, contrast_sigmoid

FORMS = ("asymmetric", "symmetric", "sigmoid")
LOCAL_CLIPS, CANDIDATES, WIDTH = 256, 1, 512  # of one rank; embeddings of the video-audio space
COLUMNS = (4096, 8192, 16384, 32768)  # clips of all ranks, `G`
QUICK_COLUMNS = (256, 512)
MOST_MIB = 200e6 / MIB


def measure_loss_memory(place: Place) -> Iterator[Row]:
    """The three forms of the loss; on a CPU sizes of a process are too coarse for a bound."""
    on_gpu = place.device.type == "cuda"
    columns: Sequence[int] = QUICK_COLUMNS if place.quick else COLUMNS
    for form in FORMS:
        results = [measure_loss(form, num, 3, place.device) for num in columns]
        for num, result in zip(columns, results, strict=True):
            case, what = f"{form}, G {num}", "memory beyond embeddings and gradients"
            yield Row(case, "forward + backward", result["seconds"] * 1e3, "ms")
            yield Row(case, what, result["mib"], "MiB", at_most=MOST_MIB if on_gpu else None)
        ratio = results[-1]["seconds"] / results[-2]["seconds"]
        most = None if place.quick else 2.5
        yield Row(form, "time of the most columns, of half of them", ratio, "×", at_most=most)


def measure_loss(
    form: str, num_columns: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Forward and backward of one rank's rows against the gathered rows of all.

    Args:
        form: One of `FORMS`.
        num_columns: Clips of all ranks, `G`.
        repeats: Number of measurements, of which the median counts.
        device: Device of all of it.

    Returns:
        `seconds`, and `mib` beyond embeddings and their gradients.
    """
    if device.type == "cpu":
        return_freed_memory()
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
    gradients = 2 * everyone.first_BD.nbytes  # not part of the loss
    mib = (peak_bytes(step, device) - gradients) / MIB
    forget()
    return {"seconds": median_seconds({"step": step}, repeats, device)["step"], "mib": mib}
