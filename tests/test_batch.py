"""Batches on their way to a device."""

import pytest
import torch

from vatt.batch import Batch


@pytest.mark.gpu
def test_copies_beside_a_computation_are_there_when_they_are_read() -> None:
    sounds = [torch.full((64, 100_000), float(number)).pin_memory() for number in range(20)]
    matrix, means = torch.rand(4096, 4096, device="cuda"), []
    for sound in sounds:
        (matrix @ matrix).sum()  # the copy runs beside this
        moved = Batch(audio=sound).to("cuda").audio
        assert moved is not None
        means.append(moved.mean())
        del moved  # its memory may be used again
    assert torch.stack(means).tolist() == list(range(20))
