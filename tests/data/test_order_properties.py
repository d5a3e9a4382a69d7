"""The order and the position, for sets, weights, ranks and positions that Hypothesis thinks up."""

import math
from collections import Counter
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from vatt.data.draws import draw_bits
from vatt.data.loader import PositionedLoader
from vatt.data.order import MIX_BLOCK, GlobalOrder

# The same examples in every run; what fails is shown as it is, since making it small takes minutes.
few = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
many = settings(few, max_examples=40)

SEEDS = st.integers(-(2**63), 2**63 - 1)
POSITIONS = st.one_of(st.integers(0, 500), st.integers(0, 10**12))
SHARDS = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any)  # empty ones as well
FULL_SHARDS = st.lists(st.integers(8, 12), min_size=2, max_size=5)
WEIGHTS = st.floats(1e-3, 1e3)


@st.composite
def orders(draw, shards=SHARDS, max_sets=4, weights=WEIGHTS, may_be_unweighted=True):
    """Arguments of `GlobalOrder`, so that an order can be made again."""
    sizes = draw(st.lists(shards, min_size=1, max_size=max_sets))
    shares = st.lists(weights, min_size=len(sizes), max_size=len(sizes))
    return {
        "shard_sizes": sizes,
        "weights": draw(st.none() | shares if may_be_unweighted else shares),
        "seed": draw(SEEDS),
        "shuffle_shards": draw(st.integers(1, 10)),
    }


def take(arguments, start, count, batch_size=None):
    order = GlobalOrder(**arguments)
    order.mix_within(batch_size)
    return [order.ref(position) for position in range(start, start + count)]


def epochs_of(refs, set_index):
    """The samples of each epoch of a set, in the order of the stream."""
    of_set = [ref for ref in refs if ref.set_index == set_index]
    parts = [(epoch, list(part)) for epoch, part in groupby(of_set, lambda ref: ref.epoch)]
    assert all(after == before + 1 for (before, _), (after, _) in pairwise(parts))
    return [[ref.sample_index for ref in part] for _, part in parts]


class References(Dataset):
    """Gives back what it is asked for."""

    def __getitems__(self, refs):
        return refs


def open_rank(arguments, batch_size, rank=0, world_size=1, **options):
    order = GlobalOrder(**arguments)
    share = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
    return PositionedLoader(References(), order, **share, **options)


def take_batches(loader, count):
    """So many batches, over as many passes as it needs."""
    batches = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


@many
@given(orders(), POSITIONS, st.none() | st.integers(1, 200))
def test_every_sample_of_a_set_comes_exactly_once_in_every_epoch_of_that_set(
    arguments, start, batch_size
):
    refs = take(arguments, start, 250, batch_size)
    for index, sizes in enumerate(arguments["shard_sizes"]):
        epochs = epochs_of(refs, index)
        for samples in epochs:
            assert len(set(samples)) == len(samples)
            assert set(samples) <= set(range(sum(sizes)))
        for samples in epochs[1:-1]:  # the whole ones
            assert len(samples) == sum(sizes)


@few
@given(
    orders(may_be_unweighted=False, max_sets=3),
    st.integers(0, 10**6),
    st.none() | st.sampled_from([1, 8, 1_000]),  # divisors of a block
)
def test_no_sample_is_lost_where_one_block_of_mixed_sets_follows_the_other(
    arguments, block, batch_size
):
    order = GlobalOrder(**arguments)
    order.mix_within(batch_size)
    edge = (block + 1) * MIX_BLOCK
    around = [order.ref(position) for position in range(edge - 600, edge + 600)]
    for index, sizes in enumerate(arguments["shard_sizes"]):
        for samples in epochs_of(around, index)[1:-1]:
            assert sorted(samples) == list(range(sum(sizes)))


@many
@given(orders(shards=FULL_SHARDS, max_sets=3, weights=st.floats(1, 2)))
def test_epochs_and_seeds_have_orders_of_their_own(arguments):
    others = {**arguments, "seed": arguments["seed"] ^ 1}
    count = 12 * max(sum(sizes) for sizes in arguments["shard_sizes"])
    streams = [take(one, 0, count) for one in (arguments, others)]
    orders_seen = [tuple(s) for refs in streams for s in epochs_of(refs, 0)[:-1]]
    assert len(orders_seen) >= 4
    assert len(set(orders_seen)) == len(orders_seen)


@few
@given(st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=6), SEEDS, st.integers(0, 10**6))
@example([0.9, 0.9, 4999.6, 4998.6], 0, 0)  # what is rounded up to one is not rounded up again
@example([1e-6] * 150 + [1.0] * 149, 0, 0)  # what many small sets need is not taken from one
@example([1e-6] * 20 + [5.0] + [1.0] * 10, 0, 0)  # nor from the largest alone
@pytest.mark.slow
def test_weights_are_met_at_every_position_as_closely_as_they_are_promised(weights, seed, block):
    order = GlobalOrder([[1_000]] * len(weights), weights, seed)
    start = block * MIX_BLOCK
    refs = [order.ref(position) for position in range(start, start + MIX_BLOCK)]
    counts = Counter(ref.set_index for ref in refs)
    quotas = np.array(weights) / sum(weights) * MIX_BLOCK
    floors = np.maximum(np.floor(quotas), 1)  # no set is left out
    excess = floors.sum() - MIX_BLOCK  # the others make room, each for its part
    room = 1 + (excess - 1) / (quotas >= 1).sum() if excess > 0 else 0
    for index, quota in enumerate(quotas):
        assert counts[index] >= 1
        assert abs(counts[index] - quota) < 1 + room
    # of a set of one sample the epoch says how often it has come since the start of the stream
    order = GlobalOrder([[1]] * len(weights), weights, seed)
    for ref in map(order.ref, range(start, start + MIX_BLOCK, 97)):
        share = counts[ref.set_index] / MIX_BLOCK
        assert abs(ref.epoch - ref.position * share) <= MIX_BLOCK * share * (1 - share) + 1e-3


@many
@given(
    st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=6),
    SEEDS,
    st.integers(1, 12_000),
    st.integers(0, 10**9),
)
@example([1.0, 1.0], 0, 2_048, 0)
def test_every_batch_has_the_share_of_every_set_but_for_rounding(weights, seed, batch_size, batch):
    order = GlobalOrder([[1_000]] * len(weights), weights, seed)
    order.mix_within(batch_size)
    start = batch * batch_size
    refs = [order.ref(position) for position in range(start, start + batch_size)]
    counts = Counter(ref.set_index for ref in refs)
    quotas = np.array(weights) / sum(weights) * batch_size
    # of a block of 10,000 positions or more a set has its share rounded, and at least one
    rounded = len(weights) * batch_size / max(MIX_BLOCK, batch_size)
    for index, quota in enumerate(quotas):
        assert abs(counts[index] - quota) < 1 + rounded


@many
@given(SEEDS, st.integers(12, 40))
def test_shards_come_in_another_order_in_every_epoch(seed, num_shards):
    arguments = {"shard_sizes": [[1] * num_shards], "seed": seed, "shuffle_shards": 1}
    epochs = epochs_of(take(arguments, 0, 4 * num_shards), 0)
    assert len({tuple(shards) for shards in epochs}) == 4


@many
@given(orders(shards=FULL_SHARDS, max_sets=1), st.integers(0, 10**6))
def test_the_samples_of_a_window_come_from_so_many_shards(arguments, epoch):
    (sizes,), shuffle_shards = arguments["shard_sizes"], arguments["shuffle_shards"]
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    refs = take(arguments, epoch * sum(sizes), sum(sizes))
    in_order = [int(shard_of[ref.sample_index]) for ref in refs]
    seen = []
    while in_order:  # a window ends where all samples of its shards have come
        shards = set()
        wanted = 0
        while not shards or wanted:
            shard = in_order.pop(0)
            wanted += 0 if shard in shards else sizes[shard]
            wanted -= 1
            shards.add(shard)
        assert len(shards) <= shuffle_shards
        assert not shards & set(seen)
        seen += shards
    assert len(seen) == len(sizes)


@many
@given(orders(), st.integers(1, 6), st.integers(1, 4), POSITIONS, st.integers(1, 5))
def test_ranks_share_every_global_batch_and_make_the_same_steps(
    arguments, per_rank, world_size, position, steps
):
    batch_size = per_rank * world_size
    ranks = [open_rank(arguments, batch_size, rank, world_size) for rank in range(world_size)]
    state = {**ranks[0].state_dict(), "position": position}
    for rank in ranks:
        rank.load_state_dict(state)
    parts = [take_batches(rank, steps) for rank in ranks]
    assert len({len(rank) for rank in ranks}) == 1
    for step, batches in enumerate(zip(*parts, strict=True)):
        assert {len(batch) for batch in batches} == {per_rank}
        start = position + step * batch_size
        in_order = sorted((ref for batch in batches for ref in batch), key=lambda r: r.position)
        assert in_order == take(arguments, start, batch_size, batch_size)
    assert all(rank.state_dict() == ranks[0].state_dict() for rank in ranks)


def check_resumed(arguments, stop, before, after, **options):
    """What ranks hand out before and after a stop is the stream: no sample lost or repeated."""
    batch_size, refs = 12, []
    state = None
    for world_size, steps in ((before, stop), (after, 4)):
        ranks = [
            open_rank(arguments, batch_size, rank, world_size, **options)
            for rank in range(world_size)
        ]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
            refs += [ref for batch in take_batches(rank, steps) for ref in batch]
            rank.close()
        state = ranks[0].state_dict()
    refs.sort(key=lambda ref: ref.position)
    assert refs == take(arguments, 0, (stop + 4) * batch_size, batch_size)


WORLD_SIZES = st.sampled_from([1, 2, 3, 4, 6])


@many
@given(orders(), st.integers(0, 20), WORLD_SIZES, WORLD_SIZES)
def test_a_run_goes_on_with_another_number_of_ranks(arguments, stop, before, after):
    check_resumed(arguments, stop, before, after)


@settings(few, max_examples=3)
@given(orders(), st.integers(1, 5), st.integers(1, 2), st.integers(1, 2))
def test_a_run_goes_on_in_workers_with_another_number_of_ranks(arguments, stop, before, after):
    check_resumed(arguments, stop, before, after, num_workers=1, start_method="fork")


@few
@given(orders(may_be_unweighted=False), SEEDS)
def test_names_of_orders_do_not_change_and_tell_seeds_apart(arguments, seed):
    name = GlobalOrder(**arguments).fingerprint()
    assert GlobalOrder(**arguments).fingerprint() == name
    other = GlobalOrder(**{**arguments, "seed": seed}).fingerprint()
    assert (other == name) == (seed == arguments["seed"])


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_the_first_batch_after_a_resume_takes_no_more_work_however_far_it_is(weights, monkeypatch):
    drawn, asked = [], []

    def counting(*keys):
        numbers = draw_bits(*keys)
        drawn.append(numbers.size)
        return numbers

    class Asked(Dataset):
        def __getitems__(self, refs):
            asked.append(len(refs))
            return refs

    sizes = [[40] * 20, [40] * 10]
    period = MIX_BLOCK * math.lcm(800, 400, 1_200)  # where all sets begin an epoch
    work = []
    for position in (0, period, 10**9 // period * period, 10**15 // period * period):
        loader = PositionedLoader(Asked(), GlobalOrder(sizes, weights, seed=1), batch_size=16)
        loader.load_state_dict({**loader.state_dict(), "position": position})
        drawn.clear()
        asked.clear()
        with monkeypatch.context() as patch:
            for module in ("draws", "order"):
                patch.setattr(f"vatt.data.{module}.draw_bits", counting)
            (batch,) = take_batches(loader, 1)
        assert batch[0].position == position
        work.append((sorted(drawn), list(asked)))
    assert work[0][1] == [16]
    assert len(work[0][0]) == (2 if weights is None else 6)  # shards and a window; and the mixing
    assert all(one == work[0] for one in work)
