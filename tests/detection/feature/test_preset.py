from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.config import ALIGNED, FeatureConfig
from metaformer.detection.feature.position_memory import SamePlace
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.feature.state import adapted_from_state
from metaformer.detection.nearest_neighbors import (
    MEMORY_CHUNK,
    QUERY_CHUNK,
    aligned_distance,
    cosine_distance,
    euclidean_distance,
    fit_grid,
)
from metaformer.detection.preprocessing import to_tensor
from metaformer.networks.patch_metric import (
    ALL_READINGS,
    EUCLIDEAN,
    FLOOR,
    LEARNED,
    Shares,
    TokenMetric,
)
from tests.helpers import boards

CONFIG = FeatureConfig(resolution=96)
PLAIN = replace(CONFIG, learned=False)


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    """As users get it, with the learned metric."""
    return FeatureModel.from_pretrained(CONFIG)


@pytest.fixture(scope="module")
def plain(model) -> FeatureModel:
    """The comparison without learning."""
    return FeatureModel(PLAIN, model.backbone)


@pytest.fixture(scope="module")
def aligned() -> FeatureModel:
    return FeatureModel.from_pretrained(replace(ALIGNED, resolution=96))


def tensor(pixels) -> torch.Tensor:
    return to_tensor(pixels, pixels.shape[:2])


def unit(count: int, channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, channels, generator=generator), dim=1)


def test_tokens_compared_by_direction_are_of_unit_length(model, plain, aligned):
    image = tensor(boards.good(0, height=64, width=96))
    shapes = {"8": (40, 8, 12), "16": (112, 4, 6)}
    expected = {
        model: {
            **shapes,
            "pooled": (64, 8, 12),
            "wide": (96, 4, 6),
            "32": (192, 2, 3),
            "part": (192, 2, 3),
            "raw": (40, 8, 12),
        },
        plain: shapes,
        aligned: {"4": (24, 16, 24), "8": (40, 8, 12)},
    }
    for preset, sizes in expected.items():
        tokens = preset.prepare(image)
        assert {name: t.shape for name, t in tokens.items()} == sizes
        for name in tokens.keys() - EUCLIDEAN:
            reading = tokens[name]
            lengths = reading.norm(dim=0)
            assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)


def test_the_support_itself_is_at_distance_zero(model):
    tokens = [model.prepare(tensor(boards.good(seed))) for seed in range(2)]
    adapted = model.adapt(tokens, seed=0)
    for image in tokens:
        found = adapted.anomaly_maps(image)
        other = adapted.anomaly_maps(model.prepare(tensor(boards.good(7))))
        # Not quite zero: floors, and the rounding of squares under a root.
        assert float(found.max()) < 0.1 * float(other.mean())


def test_a_real_defect_stands_out_where_it_is(model):
    good = [model.prepare(tensor(boards.good(seed, "77000005"))) for seed in range(3)]
    adapted = model.adapt(good, seed=0)
    found = adapted.anomaly_maps(model.prepare(tensor(boards.defective(50, "77000005"))))
    plain = adapted.anomaly_maps(model.prepare(tensor(boards.good(50, "77000005"))))
    assert found.shape == (2, 12, 12)
    for defective, good in zip(found, plain, strict=True):
        assert float(defective.max()) > 1.2 * float(good.max())
        row, column = divmod(int(defective.argmax()), 12)
        # Cells are 8 pixels wide and the defect lies at the centre of the cut, give or take a few.
        assert abs(row - 5.5) <= 3 and abs(column - 5.5) <= 3


def distances(image, memory) -> dict[str, torch.Tensor]:
    """Reading -> (12, 12) distance to the nearest, computed in another way."""
    parts = {}
    for name, grid in ((name, image[name]) for name in memory):
        distance = torch.cdist(grid.flatten(1).T, memory[name]).min(dim=1).values
        if name not in EUCLIDEAN:
            distance = distance**2 / 2  # 1 - cosine
        shaped = distance.reshape(1, 1, *grid.shape[1:])
        parts[name] = F.interpolate(shaped, (12, 12), mode="bilinear")[0, 0]
    return parts


def distances_in_place(image, others) -> dict[str, torch.Tensor]:
    """(12, 12) distances to the nearest around the same place of others, cell by cell."""
    here, raw = torch.empty(12, 12), torch.empty(12, 12)
    for row in range(12):
        for column in range(12):
            near = [
                other["8"][:, down, right]
                for other in others
                for down in range(max(0, row - 1), min(12, row + 2))
                for right in range(max(0, column - 1), min(12, column + 2))
            ]
            here[row, column] = min(float(1 - image["8"][:, row, column] @ one) for one in near)
            raw[row, column] = min(
                float((image["raw"] - other["raw"])[:, row, column].norm()) for other in others
            )
    return {"here": here, "raw": raw}


def test_plain_map_is_the_weighted_mean_of_the_levels(plain):
    image = plain.prepare(tensor(boards.good(9)))
    memory = {"8": unit(50, 40, 0), "16": unit(50, 112, 1)}
    parts = distances(image, memory)
    expected = (0.5 * parts["8"] + 1.0 * parts["16"]) / 1.5
    (found,) = AdaptedFeature(plain, memory).anomaly_maps(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_learned_maps_are_weighted_geometric_means_of_the_distances(model):
    image = model.prepare(tensor(boards.good(9)))
    memory = {"8": unit(50, 40, 0), "16": unit(50, 112, 1), "pooled": unit(50, 64, 2)}
    memory |= {"wide": unit(50, 96, 3), "32": unit(50, 192, 4), "part": unit(50, 192, 5)}
    parts = distances(image, memory)
    others = [model.prepare(tensor(boards.good(seed))) for seed in range(2)]
    parts |= distances_in_place(image, others)
    weights, learned = model.metric.shares()
    assert float(weights.sum()) == pytest.approx(1) and 0 < float(learned) < 1
    cosine = weights[0] * parts["8"] + weights[1] * parts["16"]
    for maps in (
        (Shares(pooled=0.6), Shares(pooled=0.3, wide=0.2, part=0.1, context=2.0)),
        (Shares(pooled=0.6, part=0.1), Shares(pooled=0.8, context=0.3)),
        (Shares(pooled=0.0, wide=1.0),),
        (Shares(pooled=0.6, here=0.4), Shares(pooled=0.3, wide=0.2, here=0.1, raw=0.3)),
        (LEARNED,),
    ):
        compare = model.with_config(replace(CONFIG, maps=maps, own=0.0))
        known = {name: memory[name] for name in compare.config.searched}
        in_place = None
        if compare.config.has_same_place:
            in_place = replace(SamePlace.of(others), alignments=(0.5,))
        adapted = AdaptedFeature(compare, known, same_place=in_place, count=3)
        found = adapted.anomaly_maps(image)
        assert len(found) == len(maps)
        for grid, shares in zip(found, [shares.given(3, 0.5) for shares in maps], strict=True):
            exponent = float(learned) if shares.pooled is None else shares.pooled
            directions = (cosine + shares.context * parts["32"]) / (1 + shares.context)
            factors = [(directions, 1 - exponent - shares.wide - shares.part)]
            factors += [(parts["pooled"], exponent), (parts["wide"], shares.wide)]
            factors += [(parts["part"], shares.part)]
            left = 1 - shares.here - shares.raw
            factors = [(distance, left * share) for distance, share in factors]
            factors += [(parts["here"], shares.here), (parts["raw"], shares.raw)]
            powers = [(distance + FLOOR).log() * share for distance, share in factors]
            torch.testing.assert_close(grid, sum(powers).exp(), rtol=1e-4, atol=1e-5)


def test_only_readings_with_a_share_are_made(model):
    def readings(*maps: Shares) -> tuple[str, ...]:
        return replace(CONFIG, maps=maps).readings

    assert readings(LEARNED) == ("8", "16", "pooled")
    assert readings(LEARNED, Shares(context=1.0)) == ("8", "16", "pooled", "32")
    assert readings(Shares(here=0.1)) == readings(Shares(raw=0.1)) == ("8", "16", "pooled", "raw")
    both = (Shares(0.5, part=0.1, raw=0.1), Shares(0.5, wide=0.3, context=1.0))
    assert readings(*both) == readings(*both[::-1]) == CONFIG.readings == ALL_READINGS
    assert tuple(model.prepare(tensor(boards.good(0)))) == CONFIG.readings


def test_wide_tokens_count_the_more_the_more_images_there_are():
    shares = Shares(pooled=0.3, wide=0.4, part=0.1, context=1.0)
    assert shares.given(1, 0.0) == Shares(pooled=0.5, wide=0.0, part=0.1, context=1.0)
    given = [shares.given(count, 0.0) for count in (1, 2, 5, 100)]
    assert sorted(given, key=lambda one: one.wide) == given
    for one in given:  # half of what is lacking is not the pooled tokens' but the directions'
        lacking = shares.wide - one.wide
        assert one.pooled == pytest.approx(shares.pooled + lacking / 2)
    assert LEARNED.given(1, 1.0) == LEARNED
    grown = replace(shares, context_added=2.0)
    contexts = [grown.given(count, 0.0).context for count in (1, 15, 16, 48, 10**9)]
    assert contexts == pytest.approx([1.0, 1.0, 2.0, 2.5, 3.0])


def test_places_count_as_far_as_they_say_something():
    shares = Shares(pooled=0.3, here=0.2, raw=0.1)
    assert shares.given(1, 0.0) == replace(shares, here=0.0)
    assert shares.given(1, 1.0) == shares
    assert shares.given(4, 0.5).here == pytest.approx(0.05)
    few, many, most = (shares.given(count, 0.5).here for count in (1, 16, 300))
    assert few > many == most > 0


def test_a_file_says_how_many_images_its_memory_stands_for(model):
    tokens = [model.prepare(tensor(boards.good(seed))) for seed in range(3)]
    adapted = model.adapt(tokens[:2], seed=0)
    (alignment,) = adapted.same_place.alignments
    assert 0 < alignment < 1
    assert adapted.shares == (tuple(shares.given(2, alignment) for shares in CONFIG.maps),)
    tensors, settings = adapted.state()
    restored = adapted_from_state(tensors, settings)
    assert restored.shares == adapted.shares
    assert restored.extended(tokens[2:], earlier=2, seed=0).count == 3
    for damaged in (0, "2"):
        with pytest.raises(ValueError, match="images is"):
            adapted_from_state(tensors, {**settings, "images": damaged})
    for damaged in (1.1, float("nan"), "0.5", [], [0.5, "0.5"]):
        with pytest.raises(ValueError, match="alignment is"):
            adapted_from_state(tensors, {**settings, "alignment": damaged})


@pytest.mark.parametrize("maps", [(), (LEARNED,) * 3])
def test_there_are_one_or_two_maps(maps):
    with pytest.raises(ValueError, match="maps: found"):
        FeatureConfig(maps=maps)


@pytest.mark.parametrize(
    "shares",
    [
        {"pooled": 1.1},
        {"pooled": -0.1},
        {"pooled": float("nan")},
        {"context": -1.0},
        {"pooled": 0.6, "wide": 0.3, "part": 0.2},
        {"wide": 0.6},
        {"pooled": 0.5, "context": float("inf")},
        {"here": 0.7, "raw": 0.4},
    ],
)
def test_exponents_of_a_map_sum_to_one_at_most(shares):
    with pytest.raises(ValueError, match="shares of a map: found"):
        Shares(**shares)


@pytest.mark.parametrize(
    ("written", "maps"),
    [
        ({}, (LEARNED,)),
        ({"balances": [], "contexts": []}, (LEARNED,)),
        ({"balances": [0.6, 0.8]}, (Shares(0.6), Shares(0.8))),
        (
            {"balances": [0.6, 0.6], "contexts": [0.0, 1.0]},
            (Shares(0.6), Shares(0.6, context=1.0)),
        ),
    ],
)
def test_a_file_from_before_wide_tokens_is_read_as_it_was(model, written, maps):
    old = model.with_config(replace(CONFIG, maps=maps, own=0.0))
    adapted = old.adapt([old.prepare(tensor(boards.good(0)))], seed=0)
    tensors, settings = adapted.state()
    del settings["config"]["maps"], settings["images"], tensors["metric.wide"]
    settings.pop("alignment", None)
    del settings["config"]["own"]
    settings["config"] |= written
    restored = adapted_from_state(tensors, settings)
    assert restored.model.config == old.config
    query = old.prepare(tensor(boards.defective(1)))
    assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))


def test_context_costs_a_block_of_its_stride_and_survives_saving(model):
    without = FeatureModel.from_pretrained(
        replace(CONFIG, maps=(Shares(0.5), Shares(0.5, wide=0.3)))
    )
    assert list(without.backbone.channels) == [4, 8, 16] and without.size_multiple == 16
    assert list(model.backbone.channels) == [4, 8, 16, 32] and model.size_multiple == 32
    tokens = [model.prepare(tensor(boards.good(seed))) for seed in range(2)]
    assert tokens[0]["32"].shape == (192, 3, 3)
    adapted = model.adapt(tokens[:1], seed=0)
    maps = adapted.anomaly_maps(tokens[1])
    tensors, settings = adapted.state()
    assert torch.equal(adapted_from_state(tensors, settings).anomaly_maps(tokens[1]), maps)


def test_more_normal_images_never_raise_the_map(model):
    """But for what the images say about shares: of the score their number says nothing."""
    tokens = [model.prepare(tensor(boards.good(seed))) for seed in range(4)]
    query = model.prepare(tensor(boards.defective(8)))
    few, _ = model.adapt(tokens[:2], seed=0, alignment=1.0).anomaly_maps(query)
    many, _ = model.adapt(tokens, seed=0, alignment=1.0).anomaly_maps(query)
    assert (many <= few + 1e-6).all()
    assert (many < few - 1e-4).any()


def test_order_of_the_support_does_not_matter(model):
    tokens = [model.prepare(tensor(boards.good(seed))) for seed in range(3)]
    query = model.prepare(tensor(boards.good(8)))
    forward = model.adapt(tokens, seed=0).anomaly_maps(query)
    backward = model.adapt(tokens[::-1], seed=0).anomaly_maps(query)
    torch.testing.assert_close(forward, backward, rtol=1e-5, atol=1e-6)


def test_large_memories_are_drawn_from_by_seed(model):
    small = model.with_config(replace(CONFIG, max_tokens=100))
    tokens = [model.prepare(tensor(boards.good(seed))) for seed in range(3)]
    whole = model.adapt(tokens, seed=0).memory
    assert len(whole["8"]) == 3 * 144 and len(whole["16"]) == 3 * 36
    first, again, other = (small.adapt(tokens, seed=seed).memory for seed in (1, 1, 2))
    for level in small.config.searched:
        kept = min(100, len(whole[level]))  # of stride 32 there are fewer
        assert first[level].shape == (kept, whole[level].shape[1])
        assert torch.equal(first[level], again[level])
        assert kept < 100 or not torch.equal(first[level], other[level])
        # Every kept token is one of the support's, and none is kept twice.
        same = (first[level][:, None] == whole[level][None]).all(dim=2)
        assert same.any(dim=1).all()
        assert len(first[level].unique(dim=0)) == kept


def test_state_restores_the_same_maps_bit_for_bit(model):
    adapted = model.adapt([model.prepare(tensor(boards.good(0)))], seed=0)
    tensors, settings = adapted.state()
    copies = {name: t.clone() for name, t in tensors.items()}
    restored = adapted_from_state(copies, settings)
    query = model.prepare(tensor(boards.defective(1)))
    assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))
    assert restored.model.config == CONFIG


def test_a_file_keeps_the_metric_it_was_made_with(model):
    other = TokenMetric()
    other.maps["8"].weight.data *= torch.linspace(0.5, 2, 40)
    changed = FeatureModel(CONFIG, model.backbone, other.requires_grad_(False).eval())
    adapted = changed.adapt([changed.prepare(tensor(boards.good(0)))], seed=0)
    restored = adapted_from_state(*adapted.state())
    query = tensor(boards.defective(1))
    found = restored.anomaly_maps(restored.model.prepare(query))
    assert torch.equal(found, adapted.anomaly_maps(changed.prepare(query)))


def test_a_file_from_before_the_metric_is_read_as_it_was(plain):
    adapted = plain.adapt([plain.prepare(tensor(boards.good(0)))], seed=0)
    tensors, settings = adapted.state()
    del settings["config"]["learned"]
    restored = adapted_from_state(tensors, settings)
    query = plain.prepare(tensor(boards.defective(1)))
    assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))


def test_the_metric_is_of_its_levels_alone():
    with pytest.raises(ValueError, match="learned"):
        FeatureConfig(levels=(4, 8))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_cosine_distance_is_that_of_the_nearest(queries, memory, seed):
    q, m = unit(queries, 7, seed), unit(memory, 7, seed + 1)
    expected = (1 - F.cosine_similarity(q[:, None], m[None], dim=2)).min(dim=1).values
    distance = cosine_distance(q, m)
    torch.testing.assert_close(distance, expected.clamp_min(0), atol=1e-5, rtol=1e-4)
    assert (distance >= 0).all() and (distance <= 2 + 1e-6).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_euclidean_distance_is_that_of_the_nearest(queries, memory, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, 7, generator=generator)
    m = torch.randn(memory, 7, generator=generator)
    expected = torch.cdist(q, m).min(dim=1).values
    torch.testing.assert_close(euclidean_distance(q, m), expected, atol=2e-3, rtol=1e-4)


def test_euclidean_distance_in_chunks_is_the_same():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(QUERY_CHUNK + 3, 16, generator=generator)
    m = torch.randn(MEMORY_CHUNK + 5, 16, generator=generator)
    torch.testing.assert_close(
        euclidean_distance(q, m), torch.cdist(q, m).min(dim=1).values, atol=1e-3, rtol=1e-4
    )


def test_cosine_distance_in_chunks_is_the_same():
    q, m = unit(2 * QUERY_CHUNK + 5, 16, 0), unit(30, 16, 1)
    whole = (1 - (q @ m.T).max(dim=1).values).clamp_min(0)
    torch.testing.assert_close(cosine_distance(q, m), whole, atol=1e-6, rtol=0)


# Place by place


def grid(seed: int, height: int = 6, width: int = 9, channels: int = 5) -> torch.Tensor:
    """(channels, height, width), tokens of unit length."""
    return unit(height * width, channels, seed).T.reshape(channels, height, width)


@given(st.integers(0, 3), st.integers(1, 3), st.integers(0, 1000))
def test_aligned_distance_is_that_of_the_nearest_within_reach(reach, count, seed):
    query, memory = grid(seed), torch.stack([grid(seed + 1 + i) for i in range(count)])
    distance = aligned_distance(query, memory, reach)
    assert distance.shape == (6, 9)
    for row, column in ((0, 0), (2, 4), (5, 8)):
        near = memory[
            :,
            :,
            max(0, row - reach) : row + reach + 1,
            max(0, column - reach) : column + reach + 1,
        ]
        cosines = torch.einsum("c,kchw->khw", query[:, row, column], near)
        assert float(distance[row, column]) == pytest.approx(1 - float(cosines.max()), abs=1e-5)


def test_what_is_normal_elsewhere_is_found_only_by_place(aligned):
    """A copy of one piece of a good board put over another piece of it."""
    normal = [boards.good(seed, "77000005", 192, 192) for seed in range(3)]
    wrong = boards.good(9, "77000005", 192, 192)
    wrong[8:56, 8:56] = wrong[100:148, 60:108]
    maxima = {}
    for by_place in (False, True):
        config = replace(aligned.config, aligned=by_place)
        compare = FeatureModel(config, aligned.backbone)
        adapted = compare.adapt([compare.prepare(tensor(image)) for image in normal], seed=0)
        right = adapted.anomaly_maps(compare.prepare(tensor(boards.good(9, "77000005", 192, 192))))
        (found,) = adapted.anomaly_maps(compare.prepare(tensor(wrong)))
        maxima[by_place] = float(found[4:12, 4:12].mean() / right.mean())
    assert maxima[True] > 1.5 * maxima[False]


def test_an_aligned_part_may_be_out_of_place_by_the_reach(aligned):
    image = boards.good(0, "77000005", 160, 160)
    adapted = aligned.adapt([aligned.prepare(tensor(image))], seed=0)

    def score(shift: int) -> float:
        moved = torch.roll(tensor(image), shift, dims=3)
        return float(adapted.anomaly_maps(aligned.prepare(moved))[0, 12:-12, 12:-12].mean())

    assert score(0) < 1e-5
    assert score(8) < 0.3 * score(48)


def test_aligned_memory_is_bounded_and_drawn_by_seed(aligned):
    small = FeatureModel(replace(aligned.config, max_tokens=1200), aligned.backbone)
    tokens = [small.prepare(tensor(boards.good(seed))) for seed in range(10)]
    first, again, other = (small.adapt(tokens, seed=seed).memory for seed in (1, 1, 2))
    assert first["4"].shape == (2, 24, 24, 24) and first["8"].shape == (8, 40, 12, 12)
    assert all(torch.equal(first[level], again[level]) for level in first)
    assert not torch.equal(first["4"], other["4"])


def test_fit_grid_resamples_and_keeps_unit_length():
    tokens = grid(0)
    assert fit_grid(tokens, torch.Size((6, 9))) is tokens
    fitted = fit_grid(tokens, torch.Size((8, 4)))
    assert fitted.shape == (5, 8, 4)
    assert torch.allclose(fitted.norm(dim=0), torch.ones(8, 4), atol=1e-5)
