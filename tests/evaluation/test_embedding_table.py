from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import vatt.config.model
from vatt.batch import Batch
from vatt.config.spaces import DIRECTIONS
from vatt.demo.retrieval import (
    attribute_oracle,
    demo_confusions,
    demo_retrieval,
    two_attribute_oracles,
)
from vatt.evaluation.embedding_table import (
    EmbeddingTable,
    concatenate,
    embed,
    embed_batch,
    similarities,
)
from vatt.evaluation.retrieval import recall_interval, retrieval
from vatt.network.heads import all_spaces
from vatt.network.model import VATT

COMBINATIONS = [
    (shape, colour, motion)
    for i, (shape, colour, motion) in enumerate(
        product(("circle", "ring", "star"), ("blue", "red"), ("left", "right"))
    )
    if i % 5 != 3  # 10 of 12, so that two attributes do not always tell the third
]


def make_table(num_clips=12, num_captions=3, width=8, noise=0.5, seed=0, **changes):
    """Embeddings of clips whose modalities agree up to noise."""
    generator = torch.Generator().manual_seed(seed)

    def near(centre):
        values = centre + noise * torch.randn(centre.shape, generator=generator)
        return torch.nn.functional.normalize(values, dim=-1)

    va = torch.randn(num_clips, width, generator=generator)
    vt = torch.randn(num_clips, width, generator=generator)
    parts = {
        "keys": tuple(f"clip{i:02d}" for i in range(num_clips)),
        "video_va": near(va),
        "audio_va": near(va),
        "video_vt": near(vt),
        "text_vt": near(vt[:, None].repeat(1, num_captions, 1)),
        "audio_vt": near(vt),
        "video_mask": torch.ones(num_clips, dtype=torch.bool),
        "audio_mask": torch.ones(num_clips, dtype=torch.bool),
        "text_mask": torch.ones(num_clips, num_captions, dtype=torch.bool),
    }
    return EmbeddingTable(**{**parts, **changes})


def make_demo_table(num_renderings=2, **kwargs):
    combinations = COMBINATIONS * num_renderings
    renderings = [r for r in range(num_renderings) for _ in COMBINATIONS]
    return make_table(len(combinations), **kwargs), combinations, renderings


def place(scores, wanted):
    return int((scores > scores[wanted]).sum())


def summary(ranks, queries=None, candidates=12):
    ranks = np.array(ranks)
    recalls = {f"R@{k}": 100 * float((ranks < k).mean()) for k in (1, 5, 10)}
    places = {"MedR": float(np.median(ranks)) + 1, "MeanR": float(np.mean(ranks)) + 1}
    size = {"num_queries": queries or len(ranks), "num_candidates": candidates}
    return pytest.approx({**recalls, **places, **size}, abs=1e-6)


def batches_of_every_kind(config):
    """Five clips: all modalities, one without sound, one without text; then video and text only."""
    torch.manual_seed(0)
    side, frames = config.video.image_size, config.video.num_frames
    video = torch.randint(256, (5, frames, side, side, 3), dtype=torch.uint8)
    audio = torch.rand(5, config.audio.num_samples) * 2 - 1
    text = torch.randint(1, 50, (5, 3, 6))
    text[1, 1:] = 0
    text[2] = 0
    sound = torch.tensor([True, False, True])
    masked = audio[:3] * sound[:, None]
    first = Batch(video=video[:3], audio=masked, text=text[:3], audio_mask=sound, keys=tuple("abc"))
    return [first, Batch(video=video[3:], text=text[3:, :2], keys=tuple("de"))]


def test_embed_gives_unit_vectors_on_the_cpu_and_zeros_where_a_clip_lacks_something():
    config = replace(vatt.preset("tiny"), drop_token=0.5)
    model = VATT(config).train()
    torch.nn.init.ones_(model.head.va_vt.batch_norm.bias)  # zeros do not stay zeros
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = embed(model, batches_of_every_kind(config))
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert embed(model, batches_of_every_kind(config)).video_va.equal(table.video_va)
    assert table.keys == ("a", "b", "c", "d", "e")
    assert table.video_va.shape == (5, config.head.d_va)
    assert table.text_vt.shape == (5, 3, config.head.d_vt)
    assert table.audio_mask.tolist() == [True, False, True, False, False]
    assert table.text_mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]]
    sound = table.audio_mask
    for name, mask in (("video_va", table.video_mask), ("audio_va", sound), ("audio_vt", sound)):
        lengths = getattr(table, name).norm(dim=-1)
        assert torch.allclose(lengths, mask.float(), atol=1e-5), name
    assert torch.allclose(table.text_vt.norm(dim=-1), table.text_mask.float(), atol=1e-5)
    assert {t.dtype for t in (table.video_va, table.text_vt)} == {torch.float32}
    assert not table.video_va.requires_grad


def test_a_clip_gets_the_same_embedding_alone_or_in_a_batch():
    config = vatt.preset("tiny")
    model = VATT(config).eval()
    batch = batches_of_every_kind(config)[0]
    alone = Batch(video=batch.video[:1], audio=batch.audio[:1], text=batch.text[:1])
    table, single = embed_batch(model, batch), embed_batch(model, alone)
    for name in ("video_va", "audio_va", "video_vt", "audio_vt", "text_vt"):
        assert torch.allclose(getattr(table, name)[:1], getattr(single, name), atol=1e-5), name


def test_retrieval_equals_a_loop_over_every_query():
    table = make_table(noise=1.0)
    result = retrieval(table)
    text, video = table.text_vt, table.video_vt
    ranks = [place(video @ text[i, k], i) for i in range(12) for k in range(3)]
    assert result["text_to_video"] == summary(ranks)
    assert 0 < result["text_to_video"]["R@1"] < 100
    assert result["video_to_text"] == summary(
        [place(text[:, k] @ video[i], i) for i in range(12) for k in range(3)], queries=12
    )
    sound = table.audio_vt
    assert result["text_to_audio"] == summary(
        [place(sound @ text[i, k], i) for i in range(12) for k in range(3)]
    )
    assert result["audio_to_text"] == summary(
        [place(text[:, k] @ sound[i], i) for i in range(12) for k in range(3)], queries=12
    )
    assert result["text_to_audio"]["R@1"] not in (0, 100, result["text_to_video"]["R@1"])
    audio, seen = table.audio_va, table.video_va
    assert result["audio_to_video"] == summary([place(seen @ audio[i], i) for i in range(12)])
    assert result["video_to_audio"] == summary([place(audio @ seen[i], i) for i in range(12)])


@pytest.mark.parametrize(
    ("kind", "modalities", "missing"),
    [
        ("fac", ("video", "audio", "text"), set()),
        ("joint", ("video", "audio", "text"), set()),
        ("joint", ("video", "audio"), {"text_to_video", "text_to_audio"}),
        ("fac", ("video", "audio"), {"text_to_video", "text_to_audio"}),
        ("fac", ("video", "text"), {"audio_to_video", "text_to_audio"}),
    ],
)
def test_all_directions_are_measured_whose_modalities_share_a_space(kind, modalities, missing):
    tiny = vatt.preset("tiny")
    config = replace(tiny, modalities=modalities, head=replace(tiny.head, kind=kind))
    model = VATT(config).eval()
    table = embed(model, batches_of_every_kind(config))
    reverse = {"_to_".join(reversed(direction.split("_to_"))) for direction in missing}
    assert retrieval(table).keys() == set(DIRECTIONS) - missing - reverse
    if modalities == ("video", "audio", "text"):
        batch = batches_of_every_kind(config)[0]
        with torch.no_grad():
            sound = all_spaces(model.head, "audio", model.encode_audio(batch.audio[:1]))
            text = model.embed_text(batch.text[0, :1])
        space = "joint" if kind == "joint" else "vt"
        expected = torch.nn.functional.normalize(sound[space], dim=-1)
        assert torch.allclose(table.audio_vt[:1], expected, atol=1e-5)
        cosine = torch.nn.functional.cosine_similarity(sound[space], text[space])
        assert torch.allclose(table.audio_vt[0] @ table.text_vt[0, 0], cosine, atol=1e-5)


def test_clips_without_sound_or_captions_are_neither_queries_nor_candidates():
    table = make_table(noise=1.0)
    table.audio_mask[[2, 5]] = False
    table.text_mask[4] = False
    table.text_mask[7, 1:] = False
    result = retrieval(table)
    heard = [i for i in range(12) if i not in (2, 5)]
    audio, video = table.audio_va, table.video_va
    assert result["audio_to_video"] == summary([place(video @ audio[i], i) for i in heard])
    within = [place(audio[heard] @ video[i], j) for j, i in enumerate(heard)]
    assert result["video_to_audio"] == summary(within, candidates=10)
    ranks = []
    for slot in range(3):
        written = [i for i in range(12) if table.text_mask[i, slot]]
        scores = table.video_vt @ table.text_vt[written, slot].T
        ranks += [place(scores[i], j) for j, i in enumerate(written)]
    assert len(ranks) == 11 + 10 + 10
    # each of 11 + 10 + 10 queries guesses one of as many captions: right in 3 of 31 cases
    assert result["video_to_text"] == summary(ranks, queries=11, candidates=31 / 3)
    said = [i for i in heard if i != 4]
    places = [
        place(table.audio_vt[heard] @ table.text_vt[i, k], heard.index(i))
        for i in said
        for k in range(3)
        if table.text_mask[i, k]
    ]
    assert len(places) == 9 * 3 - 2
    assert result["text_to_audio"] == summary(places, candidates=10)
    assert result["audio_to_text"]["num_queries"] == 9


def test_directions_that_nobody_can_ask_are_left_out():
    silent = make_table(audio_va=None, audio_vt=None, audio_mask=torch.zeros(12, dtype=torch.bool))
    assert list(retrieval(silent)) == ["text_to_video", "video_to_text"]
    wordless = make_table(text_mask=torch.zeros(12, 3, dtype=torch.bool))
    assert list(retrieval(wordless)) == ["audio_to_video", "video_to_audio"]


def test_a_collapsed_model_and_a_nan_model_find_nothing():
    ones = torch.ones(12, 8) / 8**0.5
    same = {"video_va": ones, "audio_va": ones, "video_vt": ones, "audio_vt": ones}
    collapsed = make_table(**same, text_vt=ones[:, None].repeat(1, 3, 1))
    nan = ones * torch.nan
    broken = make_table(video_vt=nan, video_va=nan, audio_vt=nan)
    for direction in retrieval(collapsed).values():
        assert direction["R@1"] == direction["R@5"] == 0
        assert direction["MedR"] == 6.5
    for direction in retrieval(broken).values():
        assert direction["R@10"] == 0


def test_demo_retrieval_equals_a_loop_over_captions_renderings_and_galleries():
    table, combinations, renderings = make_demo_table(noise=1.0)
    result = demo_retrieval(table, combinations, renderings)
    n = len(COMBINATIONS)
    t2v, v2t, a2v, v2a, t2a, a2t = [], [], [], [], [], []
    for row, gallery in product(range(2 * n), range(2)):
        rows = slice(gallery * n, (gallery + 1) * n)
        for k in range(3):
            t2v.append(place(table.video_vt[rows] @ table.text_vt[row, k], row % n))
            v2t.append(place(table.text_vt[rows, k] @ table.video_vt[row], row % n))
            t2a.append(place(table.audio_vt[rows] @ table.text_vt[row, k], row % n))
            a2t.append(place(table.text_vt[rows, k] @ table.audio_vt[row], row % n))
        a2v.append(place(table.video_va[rows] @ table.audio_va[row], row % n))
        v2a.append(place(table.audio_va[rows] @ table.video_va[row], row % n))
    ceilings = [row.pop("ceiling") for d, row in result.items() if "audio" in d]
    expected = {"text_to_video": t2v, "video_to_text": v2t}
    expected |= {"audio_to_video": a2v, "video_to_audio": v2a}
    expected |= {"text_to_audio": t2a, "audio_to_text": a2t}
    asked = {"text": 2 * n * 3, "video": 2 * n, "audio": 2 * n}  # whatever number of galleries
    assert result == {
        direction: summary(ranks, queries=asked[direction.partition("_")[0]], candidates=n)
        for direction, ranks in expected.items()
    }
    assert ceilings == [100 * 6 / 10] * 4  # 6 pairs of shape and motion for 10 combinations


def test_oracles_are_the_mean_chance_of_guessing_among_what_looks_alike():
    for known in ([0, 1], [0, 2], [1, 2], [2]):
        chances = []
        for wanted in COMBINATIONS:
            alike = [c for c in COMBINATIONS if all(c[i] == wanted[i] for i in known)]
            chances.append(1 / len(alike))
        assert attribute_oracle(COMBINATIONS * 2, known) == pytest.approx(100 * np.mean(chances))
    oracles = two_attribute_oracles(COMBINATIONS)
    assert list(oracles) == ["shape+colour", "shape+motion", "colour+motion"]
    assert oracles["colour+motion"] == pytest.approx(100 * 4 / 10)


def test_confusions_count_what_the_best_candidate_has_right():
    table, combinations, renderings = make_demo_table(noise=0.01, seed=3)
    half = len(COMBINATIONS)
    perfect = make_demo_table(noise=0.0)[0].select(list(range(half)) * 2)
    found = demo_confusions(perfect, combinations, renderings)
    assert {c.accuracy for d in found.values() for c in d.values()} == {100.0}
    # Sound that knows nothing but the motion: every answer is the first clip of that motion.
    motions = sorted({c[2] for c in combinations})
    motion = torch.eye(8)[[motions.index(c[2]) for c in combinations]]
    deaf = EmbeddingTable(**{**vars(table), "video_va": motion, "audio_va": motion})
    found = demo_confusions(deaf, combinations, renderings)["audio_to_video"]
    assert found["motion"].accuracy == 100
    assert found["shape"].values == ("circle", "ring", "star")
    assert found["shape"].accuracy < 60
    assert found["shape"].counts.sum() == 2 * len(combinations)  # in each of two galleries
    asked = [2 * sum(c[0] == value for c in combinations) for value in found["shape"].values]
    assert found["shape"].counts.sum(dim=1).tolist() == asked


def test_a_gallery_that_lacks_a_combination_or_has_one_twice_is_refused():
    table, combinations, renderings = make_demo_table()
    with pytest.raises(ValueError, match="rendering 0 must hold each of the 10 combinations once"):
        demo_retrieval(table, [combinations[1], *combinations[1:]], renderings)
    with pytest.raises(ValueError, match="20 clips need as many combinations"):
        demo_retrieval(table, combinations[1:], renderings)


def test_tables_join_in_order():
    parts = make_table()
    joined = concatenate([parts.select([3, 1]), parts.select([0])])
    assert joined.keys == ("clip03", "clip01", "clip00")
    assert joined.text_vt.equal(parts.text_vt[[3, 1, 0]])
    silent = parts.select([5])
    silent = EmbeddingTable(
        **{**vars(silent), "audio_va": None, "audio_mask": torch.tensor([False])}
    )
    mixed = concatenate([silent, parts.select([6])])
    assert mixed.audio_va[0].abs().sum() == 0
    assert mixed.audio_va[1].equal(parts.audio_va[6])
    assert silent.select([0]).audio_va is None


def test_an_empty_loader_and_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="gave no batch"):
        embed(VATT(vatt.preset("tiny")), [])
    with pytest.raises(ValueError, match=r"12 keys, but other numbers of rows: \{'video_mask': 3"):
        make_table(video_mask=torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize(("hits", "queries"), [(0, 4), (1, 4), (4, 4), (0, 1), (37, 1000)])
def test_the_interval_of_a_recall_is_wilsons(hits, queries):
    stats = pytest.importorskip("scipy.stats")  # comes with scikit-learn
    expected = stats.binomtest(hits, queries).proportion_ci(method="wilson")
    low, high = recall_interval(hits, queries)
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)
    assert 0 <= low <= 100 * hits / queries <= high + 1e-9 <= 100 + 1e-9


def test_captions_of_one_clip_are_not_independent_queries():
    assert recall_interval(10, 40, clips=4) == recall_interval(1, 4)
    assert recall_interval(10, 40) != recall_interval(1, 4)
    with pytest.raises(ValueError, match="5 hits of 4 queries"):
        recall_interval(5, 4)


def test_similarities_are_unknown_where_a_clip_lacks_a_modality():
    text_mask = torch.ones(12, 3, dtype=torch.bool)
    text_mask[2], text_mask[3, 0] = False, False
    table = make_table(text_mask=text_mask, audio_mask=torch.arange(12) != 5)
    found = similarities(table)
    assert found.keys() == {"text_to_video", "audio_to_video", "text_to_audio"}
    by_text, by_both = found["text_to_video"], found["text_to_audio"]
    assert by_text[2].isnan().all()
    assert by_text.isnan().sum() == 12
    assert found["audio_to_video"].isnan().nonzero()[:, 0].unique().tolist() == [5]
    assert by_both.isnan().sum() == 12 + 12 - 1
    second = table.text_vt[3, 1] @ table.video_vt.T  # the first caption that there is
    assert torch.allclose(by_text[3], second)
    nobody = torch.zeros(12, dtype=torch.bool)
    assert similarities(replace(table, audio_mask=nobody)).keys() == {"text_to_video"}
