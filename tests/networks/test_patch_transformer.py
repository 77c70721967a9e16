"""T of the feature preset, how the preset uses it, and its training in small."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from metaformer.detection.feature.adapted import SEEN_IMAGES, TRUST
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.feature.state import adapted_from_state
from metaformer.detection.nearest_neighbors import apart_distance
from metaformer.detection.preprocessing import to_tensor
from metaformer.networks.patch_metric import LEARNED, READINGS, load_metric
from metaformer.networks.patch_transformer import (
    BOUND,
    CARD,
    WEIGHTS,
    SeenImage,
    TokenTransformer,
    TransformerWeightsError,
    load_token_transformer,
)
from metaformer.training.checkpoints import CheckpointError
from metaformer.training.metric.config import MetricConfig
from metaformer.training.metric.feature_cache import FeatureEpisode
from metaformer.training.metric.train import SIGMA
from metaformer.training.metric.train_transformer import episode_maps, train_transformer, with_gaps
from tests.helpers import boards, trees

CONFIG = FeatureConfig(resolution=96, transformer=True)


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return FeatureModel.from_pretrained(CONFIG)


def lively(seed: int = 0) -> TokenTransformer:
    """One whose corrections are not small."""
    torch.manual_seed(seed)
    transformer = TokenTransformer()
    torch.nn.init.normal_(transformer.correction.weight, std=0.5)
    return transformer.requires_grad_(False).eval()


def tensor(pixels) -> torch.Tensor:
    return to_tensor(pixels, pixels.shape[:2])


def support_of(model: FeatureModel, count: int) -> list[dict[str, torch.Tensor]]:
    return [model.prepare(tensor(boards.good(seed))) for seed in range(count)]


def test_shipped_weights_are_whole_and_say_how_they_were_made():
    transformer = load_token_transformer()
    assert not any(p.requires_grad for p in transformer.parameters())
    card = json.loads(resources.files("metaformer.networks.weights").joinpath(CARD).read_text())
    assert card["step"] == card["training"]["steps"]


def test_untrained_it_changes_nothing(model):
    untrained = FeatureModel(
        CONFIG, model.backbone, model.metric, TokenTransformer().requires_grad_(False).eval()
    )
    without = FeatureModel(replace(CONFIG, transformer=False), model.backbone, model.metric)
    support = support_of(model, 3)
    query = model.prepare(tensor(boards.defective(8)))
    found = untrained.adapt(support, seed=0).anomaly_maps(query)
    assert torch.equal(found, without.adapt(support, seed=0).anomaly_maps(query))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_corrections_are_bounded_and_there(model, count):
    changed = FeatureModel(CONFIG, model.backbone, model.metric, lively())
    adapted = changed.adapt(support_of(model, count), seed=0)
    query = model.prepare(tensor(boards.defective(8)))
    distances = adapted.distances(query)
    before, after = adapted.join(distances), adapted.read(query, distances)
    change = (after / before).log()
    assert after.shape == before.shape == (2, 12, 12)
    assert 0.05 < float(change.abs().max()) <= TRUST * BOUND + 1e-5
    torch.testing.assert_close(change[0], change[1], atol=1e-5, rtol=0)  # both maps alike


def test_an_image_left_out_is_not_looked_at(model):
    changed = FeatureModel(CONFIG, model.backbone, model.metric, lively())
    adapted = changed.adapt(support_of(model, 3), seed=0)
    query = model.prepare(tensor(boards.defective(8)))
    distances = adapted.distances(query)
    found = adapted.read(query, distances, without={1})
    everything = dict(adapted.seen)
    assert not torch.equal(found, adapted.read(query, distances))
    del adapted.seen[1]
    assert torch.equal(found, adapted.read(query, distances))
    adapted.seen = everything
    # With nothing else to look at, it looks at what there is.
    assert torch.equal(
        adapted.read(query, distances, without={0, 1, 2}), adapted.read(query, distances)
    )


def test_the_order_of_the_support_does_not_matter(model):
    changed = FeatureModel(CONFIG, model.backbone, model.metric, lively())
    support = support_of(model, 4)
    query = model.prepare(tensor(boards.defective(8)))
    forward = changed.adapt(support, seed=0).anomaly_maps(query)
    backward = changed.adapt(support[::-1], seed=0).anomaly_maps(query)
    torch.testing.assert_close(forward, backward, atol=1e-4, rtol=1e-4)


def test_it_looks_at_so_many_support_images(model):
    adapted = model.adapt(support_of(model, SEEN_IMAGES + 2), seed=0)
    assert len(adapted.seen) == SEEN_IMAGES


@pytest.mark.parametrize("count", [1, 3])
def test_state_restores_the_same_maps_bit_for_bit(model, count):
    changed = FeatureModel(CONFIG, model.backbone, model.metric, lively())
    adapted = changed.adapt(support_of(model, count), seed=0)
    tensors, settings = adapted.state()
    restored = adapted_from_state({name: t.clone() for name, t in tensors.items()}, settings)
    query = model.prepare(tensor(boards.defective(1)))
    assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))
    assert restored.model.config == CONFIG


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seen.tokens", lambda t: t[1:]),
        ("seen.tokens", lambda t: t[:, 1:]),
        ("seen.rows", lambda t: t[:0]),
        ("seen.loudness", lambda t: t[1:]),
        ("seen.index", lambda t: torch.zeros_like(t)),
        ("transformer.correction.weight", lambda t: t * float("nan")),
    ],
)
def test_what_does_not_add_up_is_refused(model, name, change):
    tensors, settings = model.adapt(support_of(model, 2), seed=0).state()
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError):
        adapted_from_state(tensors, settings)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 10**6))
def test_apart_distance_is_that_of_the_nearest_elsewhere(height, width, reach, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(5, height, width, generator=generator)
    found = apart_distance(tokens, reach, euclidean=True)
    cells = [(row, column) for row in range(height) for column in range(width)]
    for row, column in cells:
        far = [c for c in cells if max(abs(c[0] - row), abs(c[1] - column)) > reach]
        gaps = [float((tokens[:, row, column] - tokens[:, r, c]).norm()) for r, c in far or cells]
        assert float(found[row, column]) == pytest.approx(min(gaps), abs=1e-2)  # root of a rounding


def episode() -> FeatureEpisode:
    generator = torch.Generator().manual_seed(3)

    def features(count: int) -> dict[int, torch.Tensor]:
        return {
            8: 5 * torch.randn(count, 40, 8, 8, generator=generator),
            16: 5 * torch.randn(count, 112, 4, 4, generator=generator),
        }

    masks = torch.zeros(2, 8, 8)
    masks[0, 2:4, 2:4] = 1
    return FeatureEpisode(features(2), features(2), masks, torch.tensor([False, True]))


def test_gradients_are_those_of_finite_differences():
    transformer = lively().double().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def grids(count: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        tokens = {"16": draw(count, 112, 2, 2), "pooled": draw(count, 64, 4, 4)}
        far = {"8": draw(count, 4, 4), "16": draw(count, 2, 2), "pooled": draw(count, 4, 4)}
        return tokens, far, draw(count, 4, 4).log()

    near, query = grids(2), grids(1)

    def total() -> torch.Tensor:
        images = [SeenImage(x, -1.2) for x in transformer.embed(*near)]
        return transformer(transformer.embed(*query), images, (2, 2)).square().sum()

    total().backward()
    for name in ("embed_cues.weight", "embed_context.weight", "layers.0.to_support.key.weight"):
        parameter = transformer.get_parameter(name)
        with torch.no_grad():
            parameter[0, 0] += 1e-6
            above = float(total())
            parameter[0, 0] -= 2e-6
            below = float(total())
            parameter[0, 0] += 1e-6
        assert parameter.grad is not None
        slope = (above - below) / 2e-6
        assert float(parameter.grad[0, 0]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_maps_of_an_episode_are_those_of_the_preset(monkeypatch):
    """What is trained is what is used, but for the share of the correction."""
    monkeypatch.setattr("metaformer.detection.feature.adapted.TRUST", 1.0)
    transformer, drawn = lively(), episode()
    config = FeatureConfig(resolution=64, maps=(LEARNED,), sigma=SIGMA, transformer=True)
    model = FeatureModel.from_pretrained(config, transformer=transformer)
    before, after = episode_maps(transformer, load_metric(), with_gaps(model, drawn))

    support = model.metric({stride: x.float() for stride, x in drawn.support.items()})
    query = model.metric({stride: x.float() for stride, x in drawn.query.items()})
    adapted = model.adapt([{n: g[i] for n, g in support.items()} for i in range(2)], seed=0)
    from metaformer.detection.scoring.anomaly_map import smooth

    for i in range(2):
        tokens = {name: query[name][i] for name in READINGS}
        used = smooth(adapted.anomaly_maps(tokens), config.sigma)[0]
        torch.testing.assert_close(after[i], used, atol=2e-3, rtol=2e-3)  # kept in half precision
        plain = smooth(adapted.join(adapted.distances(tokens)), config.sigma)[0]
        torch.testing.assert_close(before[i], plain, atol=2e-3, rtol=2e-3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return trees.textures(tmp_path_factory.mktemp("photos"))


def small(photos: Path, output: Path) -> MetricConfig:
    return MetricConfig(
        data=photos,
        output=output,
        side=64,
        episodes=20,
        meta_batch=2,
        steps=4,
        log_every=2,
        validate_every=4,
        validation_episodes=2,
        checkpoint_every=2,
        weight_decay=0.05,
    )


def test_training_resumes_to_the_same_weights(photos, tmp_path):
    config = small(photos, tmp_path / "whole")
    whole = load_file(str(train_transformer(config, quiet=True)))
    halted = replace(config, output=tmp_path / "halves")

    class Halt(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        import metaformer.training.metric.train_transformer as training

        real = training.train_step

        def until_three(*given):
            if given[-1] == 3:
                raise Halt
            return real(*given)

        patch.setattr(training, "train_step", until_three)
        with pytest.raises(Halt):
            train_transformer(halted, quiet=True)
    resumed = load_file(str(train_transformer(halted, resume=True, quiet=True)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert bool(whole["correction.weight"].any())
    lines = [json.loads(x) for x in (config.output / "log.jsonl").read_text().splitlines()]
    assert {"first_image_auroc", "image_auroc", "pixel_auroc"} <= set(lines[0])
    assert lines[0]["image_auroc"] == lines[0]["first_image_auroc"]  # zero at the start


def test_resuming_without_a_checkpoint_says_so(photos, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train_transformer(small(photos, tmp_path), resume=True, quiet=True)


def test_damaged_weights_are_refused(tmp_path):
    tensors = TokenTransformer().state_dict()
    tensors["correction.bias"] = torch.full((4,), float("inf"))
    save_file(tensors, str(tmp_path / WEIGHTS))
    with pytest.raises(TransformerWeightsError, match=r"correction\.bias"):
        load_token_transformer(tmp_path)
    with pytest.raises(TransformerWeightsError, match="pretrain transformer"):
        load_token_transformer(tmp_path / "nowhere")
