"""The loss of one of many ranks: shapes, and memory in proportion to rows × chunk."""

from collections.abc import Callable
from typing import Any

import fake_gpu
import pytest

from vatt.network.contrast import CHUNK_CLIPS

FLOAT_MIB = 4 / 2**20
WIDTHS = (512 + 512, 256 + 5 * 256)  # of a clip's embeddings in the two spaces


@pytest.mark.slow
@pytest.mark.skipif(fake_gpu.why_not() is not None, reason=str(fake_gpu.why_not()))
@pytest.mark.parametrize(("ranks", "clips"), [(8, 256), (32, 64), (256, 8), (256, 64)])
def test_the_loss_of_many_ranks_takes_the_memory_of_its_vectors_and_of_a_chunk(
    on_fake_gpu: Callable[[str, Any], Any], ranks: int, clips: int
) -> None:
    found = on_fake_gpu("gpu_plants:loss_of_ranks", {"ranks": ranks, "clips": clips})
    assert (found["rows"], found["gradients"]) == ([ranks * clips, 512], True)
    assert found["waits"] == 0
    everyone = ranks * clips * FLOAT_MIB
    vectors = everyone * sum(WIDTHS)
    gradients = everyone * max(WIDTHS)
    chunk = clips * 5 * min(ranks * clips, CHUNK_CLIPS) * FLOAT_MIB
    assert vectors < found["peak_mib"] < vectors + 2 * gradients + 8 * chunk + 1
