from collections import Counter

import numpy as np
import pytest

from vatt.data.draws import SampleRef, draw_bits, draw_permutation, draw_uniforms
from vatt.data.order import MIX_BLOCK, GlobalOrder
from vatt.errors import UserError


def random_sets(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 20, size=rng.integers(1, 12)) for _ in range(rng.integers(1, 4))]


@pytest.mark.parametrize("seed", range(20))
def test_every_sample_of_all_sets_comes_once_per_epoch(seed):
    sizes = random_sets(seed)
    order = GlobalOrder(sizes, seed=seed, shuffle_shards=1 + seed % 5)
    wanted = {(index, sample) for index, one in enumerate(sizes) for sample in range(one.sum())}
    for epoch in range(3):
        refs = [order.ref(epoch * len(order) + offset) for offset in range(len(order))]
        assert {(ref.set_index, ref.sample_index) for ref in refs} == wanted
        assert {ref.epoch for ref in refs} == {epoch}


@pytest.mark.parametrize("seed", range(5))
def test_mixed_sets_have_epochs_of_their_own_and_lose_no_sample(seed):
    sizes = random_sets(seed)
    weights = [1.0 + index for index in range(len(sizes))]
    order = GlobalOrder(sizes, weights, seed=seed)
    refs = [order.ref(position) for position in range(3_000)]
    for index, one in enumerate(sizes):
        of_set = [ref for ref in refs if ref.set_index == index]
        size = int(one.sum())
        for epoch in range(len(of_set) // size):
            part = of_set[epoch * size : (epoch + 1) * size]
            assert sorted(ref.sample_index for ref in part) == list(range(size))
            assert {ref.epoch for ref in part} == {epoch}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_shards_ahead_are_those_of_this_window_and_of_the_next(seed, weighted):
    sizes = random_sets(seed)
    weights = [1.0 + index for index in range(len(sizes))] if weighted else None
    order = GlobalOrder(sizes, weights, seed=seed, shuffle_shards=2)
    ends = [np.cumsum(one) for one in sizes]
    for position in (0, 7, 20, 55, 3 * MIX_BLOCK + 11):
        now, after = order.shards_ahead(position)
        waiting = {}  # what each set, or all together, has not yet come to
        for offset in range(120):
            ref = order.ref(position + offset)
            shard = int(np.searchsorted(ends[ref.set_index], ref.sample_index, side="right"))
            place, stream = (ref.set_index, shard), ref.set_index if weighted else 0
            of_stream = [one for one in after if not weighted or one[0] == stream]
            if place not in (now if stream not in waiting else of_stream):
                if stream in waiting:
                    break  # the window after the next
                waiting[stream] = True
                assert place in of_stream
        assert (0 if weighted else order.ref(position).set_index) in {one[0] for one in now}


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.7, 0.2, 0.1], [1e-9, 1], [1, 2, 4, 8]])
def test_weights_are_met_in_every_block(weights):
    order = GlobalOrder([[7, 5]] * len(weights), weights, seed=3)
    share = np.array(weights) / sum(weights)
    for block in (0, 5):
        refs = [order.ref(block * MIX_BLOCK + offset) for offset in range(MIX_BLOCK)]
        counts = Counter(ref.set_index for ref in refs)
        got = np.array([counts[index] for index in range(len(weights))]) / MIX_BLOCK
        assert np.abs(got - share).max() <= 1 / MIX_BLOCK
        assert got.min() > 0


@pytest.mark.parametrize("batch_size", [2_048, 64, 8, 3, 12_288])
@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.7, 0.2, 0.1], [1, 2, 4, 8]])
def test_every_batch_holds_the_share_of_each_set(weights, batch_size):
    order = GlobalOrder([[7, 5]] * len(weights), weights, seed=3)
    order.mix_within(batch_size)
    quota = np.array(weights) / sum(weights) * batch_size
    for batch in (0, 1, 2, 3, 10**6):
        refs = map(order.ref, range(batch * batch_size, (batch + 1) * batch_size))
        counts = Counter(ref.set_index for ref in refs)
        got = np.array([counts[index] for index in range(len(weights))])
        assert np.abs(got - quota).max() < 1


def test_the_share_of_a_set_is_spread_over_the_batches_and_within_them():
    order = GlobalOrder([[100], [100]], [2, 1], seed=4)
    order.mix_within(8)  # 5.33 and 2.67 of each batch
    sets = np.array([order.ref(position).set_index for position in range(10_000)])
    drift = np.cumsum(sets.reshape(-1, 8).sum(axis=1) - 8 / 3)
    assert np.abs(drift).max() < 50  # 10 by chance; 208 if the full batches came first
    of_places = sets.reshape(-1, 8).mean(axis=0)
    assert np.abs(of_places - 1 / 3).max() < 0.07  # of 1,250 batches: 5 times the chance


def test_one_set_and_sets_without_weights_are_not_mixed_anew():
    for sizes, weights in (([[9, 8]], None), ([[9, 8]], [2.0]), ([[9, 8], [5]], None)):
        order = GlobalOrder(sizes, weights, seed=5)
        before = [order.ref(position) for position in range(60)], order.fingerprint()
        order.mix_within(4)
        assert ([order.ref(position) for position in range(60)], order.fingerprint()) == before
        assert order.mixed_within is None


@pytest.mark.parametrize("weights", [None, [2.0, 1.0]])
def test_a_position_means_the_same_in_whatever_order_positions_are_asked_for(weights):
    sizes = [[5, 9, 4, 30], [11, 2]]
    forward = GlobalOrder(sizes, weights, seed=7, shuffle_shards=2)
    refs = [forward.ref(position) for position in range(1_000)]
    scattered = GlobalOrder(sizes, weights, seed=7, shuffle_shards=2)
    for position in np.random.default_rng(0).permutation(1_000).tolist():
        assert scattered.ref(position) == refs[position]
        assert refs[position].position == position


def test_epochs_and_seeds_are_shuffled_differently():
    order, other = GlobalOrder([[50, 50]], seed=0), GlobalOrder([[50, 50]], seed=1)
    first, second = (
        [order.ref(epoch * 100 + offset).sample_index for offset in range(100)]
        for epoch in range(2)
    )
    assert (
        len({tuple(first), tuple(second), tuple(other.ref(p).sample_index for p in range(100))})
        == 3
    )
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_reading_stays_within_a_window_of_shards():
    sizes = [10] * 30
    order = GlobalOrder([sizes], seed=2, shuffle_shards=3)
    for window in range(10):
        refs = [order.ref(window * 30 + offset) for offset in range(30)]
        assert len({ref.sample_index // 10 for ref in refs}) == 3


def test_the_order_is_the_same_for_every_version_of_the_libraries():
    order = GlobalOrder([[3, 4], [5]], [1.0, 2.0], seed=11)
    refs = [(ref.set_index, ref.sample_index) for ref in map(order.ref, range(8))]
    assert refs == [(0, 4), (0, 5), (1, 2), (1, 3), (1, 0), (0, 1), (0, 3), (0, 0)]
    order.mix_within(4)
    refs = [(ref.set_index, ref.sample_index) for ref in map(order.ref, range(8))]
    assert refs == [(1, 2), (1, 3), (1, 0), (0, 4), (0, 5), (1, 1), (1, 4), (1, 4)]
    assert int(draw_bits(1, 2, 3)[0]) == 10530651154998451608


def test_a_far_position_is_found_without_drawing_what_lies_before_it(monkeypatch):
    drawn = []

    def counting(size, *keys):
        drawn.append(size)
        return draw_permutation(size, *keys)

    monkeypatch.setattr("vatt.data.order.draw_permutation", counting)
    order = GlobalOrder([np.full(1_000, 1_000)], seed=0, shuffle_shards=8)  # a million samples
    assert order.ref(10**12 + 5).epoch == 10**6
    assert drawn == [1_000, 8 * 1_000]  # the shards of one epoch, the samples of one window


def test_drawn_numbers_look_uniform_and_independent():
    numbers = draw_uniforms(0, np.arange(200)[:, None], np.arange(200))
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.002
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((counts - 2_000) ** 2 / 2_000).sum() < 45  # chi-square, 19 degrees: p = 0.0007
    for shifted in (numbers[1:], numbers[:, 1:]):
        same_shape = numbers[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.corrcoef(same_shape.ravel(), shifted.ravel())[0, 1]) < 0.02


def test_negative_keys_and_large_seeds_name_numbers_too():
    assert len({int(draw_bits(seed, 5)[0]) for seed in (-1, 0, 1, 2**62)}) == 4
    assert sorted(draw_permutation(10, -3)) == list(range(10))


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], None, "at least one sample"),
        ([[0, 0]], None, "at least one sample"),
        ([[3]], [1.0, 2.0], "1 sets need one positive weight each"),
        ([[3], [3]], [1.0, 0.0], "one positive weight each"),
        ([[3], [3]], [1.0, float("nan")], "one positive weight each"),
    ],
)
def test_sets_that_give_no_order_are_refused(sizes, weights, message):
    with pytest.raises(UserError if weights else ValueError, match=message):
        GlobalOrder(sizes, weights)


def test_the_fingerprint_changes_with_everything_that_changes_the_order():
    base = {"shard_sizes": [[3, 4], [5]], "weights": [1.0, 2.0], "seed": 0, "shuffle_shards": 8}
    changes = [
        {},
        {"shard_sizes": [[4, 3], [5]]},
        {"shard_sizes": [[3], [4]]},
        {"weights": None},
        {"weights": [1.0, 3.0]},
        {"seed": 1},
        {"shuffle_shards": 2},
    ]
    names = {GlobalOrder(**{**base, **change}).fingerprint() for change in changes}
    assert len(names) == len(changes)
    order = GlobalOrder(**base)
    assert order.fingerprint() in names
    for batch_size in (4, 8):
        order.mix_within(batch_size)
        names.add(order.fingerprint())
    assert len(names) == len(changes) + 2
    order.mix_within(None)
    assert order.fingerprint() in names


def test_the_fingerprint_is_computed_once(monkeypatch):
    order = GlobalOrder([[3, 4], [5]])
    name = order.fingerprint()
    monkeypatch.setattr("vatt.data.order.draw_bits", None)
    assert order.fingerprint() == name


def test_references_are_values():
    assert SampleRef(0, 1, 2, 3) == SampleRef(0, 1, 2, 3)
    assert len({SampleRef(0, 1, 2, 3), SampleRef(0, 1, 2, 3)}) == 1
