"""The metric, and its training in small."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metaformer.networks.patch_metric import (
    CARD,
    LEARNED,
    READINGS,
    WEIGHTS,
    MetricWeightsError,
    TokenMetric,
    load_metric,
    pool,
)
from metaformer.training.checkpoints import CheckpointError
from metaformer.training.metric.config import MetricConfig
from metaformer.training.metric.feature_cache import FeatureEpisode, fingerprint
from metaformer.training.metric.train import (
    SIGMA,
    episode_maps,
    margin,
    nearest,
    ranking_losses,
    train_metric,
)
from tests.helpers import trees


def features(seed: int, count: int = 1, side: int = 8) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        8: 5 * torch.randn(count, 40, side, side, generator=generator),
        16: 5 * torch.randn(count, 112, side // 2, side // 2, generator=generator),
    }


def test_shipped_weights_are_whole_and_say_how_they_were_made():
    metric = load_metric()
    assert not any(p.requires_grad for p in metric.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in metric.parameters())
    card = json.loads(resources.files("metaformer.networks.weights").joinpath(CARD).read_text())
    assert card["step"] == card["training"]["steps"]


def test_untrained_readings_keep_direction_and_pooled_ones_length_too():
    metric = TokenMetric()
    metric.start_pooled(torch.randn(500, 152, generator=torch.Generator().manual_seed(0)))
    seen = features(1)
    one, other = metric(seen), metric({stride: 2 * x for stride, x in seen.items()})
    for name in ("8", "16"):
        torch.testing.assert_close(one[name], other[name])
    torch.testing.assert_close(2 * one["pooled"], other["pooled"])
    directions = metric.maps["pooled"].weight
    torch.testing.assert_close(directions @ directions.T, torch.eye(64), atol=1e-5, rtol=0)


def test_the_joined_map_grows_with_each_distance():
    metric = load_metric()
    base = {name: torch.full((2, 2), 0.1) for name in READINGS}
    before = metric.join(base)
    assert bool((before > 0).all())
    for name in READINGS:
        assert bool((metric.join({**base, name: torch.full((2, 2), 0.2)}) > before).all())


def test_pooling_counts_what_lies_beyond_the_border_as_nothing():
    seen = {8: torch.ones(1, 40, 6, 6), 16: torch.ones(1, 112, 3, 3)}
    pooled = pool(seen)[0, 0]
    middle = pooled[2, 2]
    torch.testing.assert_close(pooled[0, 0], middle * 4 / 9)
    torch.testing.assert_close(pooled[0, 2], middle * 6 / 9)


@pytest.mark.parametrize("name", READINGS)
def test_nearest_is_the_nearest(name):
    metric = load_metric()
    query, support = metric(features(0, 2))[name], metric(features(1, 3))[name]
    tokens = query.flatten(2).transpose(1, 2).flatten(0, 1)
    memory = support.flatten(2).transpose(1, 2).flatten(0, 1)
    euclidean = name == "pooled"
    expected = (torch.cdist(tokens, memory) if euclidean else 1 - tokens @ memory.T).amin(1)
    found = nearest(query, support, euclidean=euclidean)
    torch.testing.assert_close(found.flatten(), expected, atol=1e-5, rtol=1e-4)


def test_gradients_of_the_maps_are_those_of_finite_differences():
    metric = TokenMetric().double()
    metric.start_pooled(torch.randn(500, 152, dtype=torch.float64))
    task = FeatureEpisode(
        support={k: v.double() for k, v in features(0, 1, 4).items()},
        query={k: v.double() for k, v in features(1, 1, 4).items()},
        masks=torch.zeros(1, 4, 4),
        is_clean=torch.tensor([True]),
    )

    def total() -> torch.Tensor:
        support, query = metric(task.support), metric(task.query)
        maps = {
            name: nearest(query[name], support[name], euclidean=name == "pooled")
            for name in ("8", "pooled")
        }
        return metric.join({**maps, "16": maps["8"]}).sum()

    total().backward()
    for parameter in (metric.maps["8"].weight, metric.maps["pooled"].weight, metric.balance):
        index = (0,) * parameter.ndim
        with torch.no_grad():
            parameter[index] += 1e-6
            above = float(total())
            parameter[index] -= 2e-6
            below = float(total())
            parameter[index] += 1e-6
        assert float(parameter.grad[index]) == pytest.approx((above - below) / 2e-6, rel=1e-4)


def test_margin_is_small_where_anomalous_is_above():
    high, low = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
    assert float(margin(high, low, 8.0)) < 1e-3 < float(margin(low, high, 8.0))
    assert float(margin(high, high, 1e-6)) == pytest.approx(np.log(2), abs=1e-4)


def test_losses_are_of_what_an_episode_holds():
    maps = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    masks = torch.zeros(3, 16, 16)
    masks[0, 4:8, 4:8] = 1
    kinds = torch.tensor([False, True, True])
    task = FeatureEpisode(support={}, query={}, masks=masks, is_clean=kinds)

    def losses(task: FeatureEpisode, maps: torch.Tensor = maps) -> dict[str, float]:
        found = ranking_losses(maps, task, 8.0, torch.Generator().manual_seed(0))
        return {name: float(loss) for name, loss in found.items()}

    assert set(losses(task)) == {"image", "pixel", "hard"}
    assert losses(task)["hard"] > losses(task)["pixel"]
    louder = torch.where(masks > 0, 10.0, maps)
    assert all(losses(task, louder)[name] < losses(task)[name] for name in losses(task))
    clean = replace(task, masks=torch.zeros_like(masks), is_clean=torch.tensor([True] * 3))
    assert losses(clean) == {}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return trees.textures(tmp_path_factory.mktemp("photos"))


def small(photos: Path, output: Path, steps: int = 4) -> MetricConfig:
    return MetricConfig(
        data=photos,
        output=output,
        side=64,
        episodes=20,
        meta_batch=2,
        steps=steps,
        log_every=2,
        validate_every=steps,
        validation_episodes=2,
        checkpoint_every=2,
    )


def test_training_resumes_to_the_same_weights(photos, tmp_path):
    config = small(photos, tmp_path / "whole")
    whole = load_file(str(train_metric(config, quiet=True)))
    halted = replace(config, output=tmp_path / "halves")

    class Halt(Exception):
        pass

    def halt(*_: object) -> None:
        raise Halt

    with pytest.MonkeyPatch.context() as patch:
        import metaformer.training.metric.train as training

        real = training.train_step

        def until_three(*given):
            return halt() if given[-1] == 3 else real(*given)

        patch.setattr(training, "train_step", until_three)
        with pytest.raises(Halt):
            train_metric(halted, quiet=True)
    resumed = load_file(str(train_metric(halted, resume=True, quiet=True)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = TokenMetric().state_dict()
    assert not torch.equal(whole["maps.8.weight"], start["maps.8.weight"])


def test_resuming_without_a_checkpoint_says_so(photos, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train_metric(small(photos, tmp_path), resume=True, quiet=True)


def test_the_bank_is_named_after_what_it_is_made_of(tmp_path):
    config = MetricConfig(data=tmp_path, output=tmp_path)
    assert fingerprint(config) == fingerprint(replace(config, steps=7, lr=0.5))
    assert fingerprint(config) != fingerprint(replace(config, seed=1))


@pytest.mark.parametrize(
    "change", [{"side": 250}, {"novel_regions": 0.9, "novel_images": 0.2}, {"steps": 0}]
)
def test_configuration_is_checked(change, tmp_path):
    with pytest.raises(ValueError, match="accepted"):
        MetricConfig(data=tmp_path, output=tmp_path, **change)


def test_damaged_weights_are_refused(tmp_path):
    tensors = load_metric().state_dict()
    tensors["maps.8.weight"] = torch.full((40, 40), float("nan"))
    save_file(tensors, str(tmp_path / WEIGHTS))
    with pytest.raises(MetricWeightsError, match=r"maps\.8\.weight"):
        load_metric(tmp_path)


def test_maps_of_an_episode_are_those_of_the_preset():
    """What is trained is what is used."""
    from metaformer.detection.feature.adapted import AdaptedFeature
    from metaformer.detection.feature.config import FeatureConfig
    from metaformer.detection.feature.preset import FeatureModel
    from metaformer.detection.scoring.anomaly_map import smooth

    config = FeatureConfig(resolution=64, maps=(LEARNED,), sigma=SIGMA, own=0.0)
    model = FeatureModel.from_pretrained(config)
    support, query = features(0, 2), features(1, 1)
    task = FeatureEpisode(support, query, torch.zeros(1, 8, 8), torch.tensor([True]))
    memory = {
        name: grids.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
        for name, grids in model.metric(support).items()
    }
    tokens = {name: grid[0] for name, grid in model.metric(query).items()}
    used = smooth(AdaptedFeature(model, memory).anomaly_maps(tokens), model.config.sigma)
    torch.testing.assert_close(episode_maps(model.metric, task), used, atol=1e-5, rtol=1e-4)
