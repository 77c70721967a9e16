"""The pixel preset: adapting helps, and a score depends on its image and the support alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaformer.detection.pixel.finetuning as pixel_long
import metaformer.detection.pixel.fitting as pixel_fit
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.adapted import adapt as adapt_feature
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.gap_correction import new_transformer
from metaformer.detection.feature.gap_distances import OF_AUTOENCODER
from metaformer.detection.pixel.adapted import AdaptedPixel
from metaformer.detection.pixel.autoencoder_backbone import fit_moments, small
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.fitting import check_loss, fit, fit_long, shifted
from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.pixel.universal_weights import UniversalWeightsError
from metaformer.networks.autoencoder import Autoencoder
from metaformer.networks.feature_maps import GAP, RESPONSE
from metaformer.networks.instance_prior import InstancePrior

CONFIG = PixelConfig(resolution=128, transformer=True)
SPOT = slice(10, 14), slice(15, 19)
"""Of ``stripes``, in cells of stride 4."""


def stripes(shift: int, *, spot: bool = False, width: int = 144) -> Tensor:
    """(1, 3, 96, width) in [0, 1]: a regular pattern, with a blob if ``spot``."""
    columns = ((torch.arange(width) + shift) % 12 < 6).float() * 0.6 + 0.2
    image = columns.expand(1, 3, 96, width).clone()
    if spot:
        image[:, :, 40:56, 60:76] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return image


def adapt(preset: PixelPreset, support: Sequence[Tensor], *, seed: int = 0) -> AdaptedPixel:
    images = [preset.prepare(image) for image in support]
    found = preset.adapt(images, seed=seed, on_step=lambda done, total: None).adapted
    assert isinstance(found, AdaptedPixel)
    return found


@pytest.fixture(scope="module")
def model() -> PixelPreset:
    """Random weights; the transformer's last layer says something, as after its training."""
    torch.manual_seed(0)
    autoencoder = Autoencoder().requires_grad_(False)
    rates = InnerRates(autoencoder, 2, 0.05).requires_grad_(False)
    prior = InstancePrior().eval().requires_grad_(False)
    network = new_transformer(OF_AUTOENCODER)
    nn.init.normal_(network.out.weight, std=0.3)
    return PixelPreset(CONFIG, autoencoder, rates, prior, network.requires_grad_(False).eval())


@pytest.fixture(scope="module")
def adapted(model: PixelPreset) -> AdaptedPixel:
    return adapt(model, [stripes(shift) for shift in range(3)])


def test_the_transformer_marks_on_a_grid_twice_as_fine(
    model: PixelPreset, adapted: AdaptedPixel
) -> None:
    assert torch.equal(model.prepare(stripes(0)), stripes(0))
    assert adapted.anomaly_maps(stripes(0)).shape == (2, 96 // 4, 144 // 4)
    plain = adapt(model.without(["transformer"]), [stripes(0)])
    assert plain.backbone.prior is None, "nothing else reads the response map and the gap"
    assert plain.anomaly_maps(stripes(0)).shape == (1, 96 // 8, 144 // 8)


def test_a_spot_stands_out(adapted: AdaptedPixel) -> None:
    for grid in adapted.anomaly_maps(stripes(5, spot=True)):
        outside = torch.cat([grid[:, :10].flatten(), grid[:, 26:].flatten()])
        assert grid[SPOT].mean() > 1.5 * outside.mean()


def test_same_seed_same_detector(model: PixelPreset, adapted: AdaptedPixel) -> None:
    again = adapt(model, [stripes(shift) for shift in range(3)])
    query = stripes(7, spot=True)
    assert torch.equal(adapted.anomaly_maps(query), again.anomaly_maps(query))


def test_adapting_leaves_the_universal_weights_alone(model: PixelPreset) -> None:
    parts = (model.autoencoder, model.network)
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    fitted = adapt(model.without(["gap"]), [stripes(0)], seed=1).backbone.autoencoder
    for part, weights in zip(parts, before, strict=True):
        assert all(torch.equal(t, weights[name]) for name, t in part.state_dict().items())
    assert model.network.reads_gap
    assert any(not torch.equal(t, before[0][name]) for name, t in fitted.state_dict().items())


def test_adapting_lowers_the_reconstruction_error(model: PixelPreset) -> None:
    images = [small(stripes(shift)) for shift in range(3)]
    fitted = fit(model.autoencoder, model.rates, images, torch.Generator())

    @torch.no_grad()
    def error(autoencoder: Autoencoder) -> float:
        x = small(stripes(7))
        moments = autoencoder.support_moments(torch.cat(images))
        return float(F.mse_loss(autoencoder(x, moments), x))

    assert error(fitted) < error(model.autoencoder)


# The backbone


def test_the_pass_for_the_moments_gives_what_the_backbone_gives(model: PixelPreset) -> None:
    images = [stripes(0), stripes(1, spot=True, width=96), stripes(2)]
    backbone, found = fit_moments(model.autoencoder, model.prior, images, CONFIG)
    for image, of_image in zip(images, found, strict=True):
        again = backbone(image)
        assert again.keys() == of_image.keys() == {4, 8, 16, GAP, RESPONSE}
        for name, grid in of_image.items():
            torch.testing.assert_close(grid, again[name], rtol=1e-3, atol=1e-3)
    height, width = images[1].shape[2:]
    for stride, channels in backbone.channels.items():
        assert found[1][stride].shape == (1, channels, height // stride, width // stride)
    assert found[1][GAP].shape == (1, 4, 32, 32), "of the small copy"
    assert found[1][RESPONSE].shape == (1, 1, height // 8, width // 8)


def test_moments_are_of_all_support_images(model: PixelPreset) -> None:
    one, _ = fit_moments(model.autoencoder, model.prior, [stripes(0)], CONFIG)
    two, _ = fit_moments(
        model.autoencoder, model.prior, [stripes(0), stripes(1, spot=True)], CONFIG
    )
    for of_one, of_two in ((one.moments, two.moments), (one.small_moments, two.small_moments)):
        first, second = of_one.tensors(), of_two.tensors()
        means = [name for name in first if name.endswith(".mean")]
        assert means and all(not torch.allclose(first[name], second[name]) for name in means)


def test_a_small_copy_keeps_the_colours_and_is_of_one_size() -> None:
    for sides in ((288, 224), (96, 144), (128, 128), (8, 300)):
        image = torch.rand(1, 3, *sides)
        copied = small(image)
        assert copied.shape == (1, 3, 128, 128)
        expected = (2 * image - 1).mean((2, 3))
        torch.testing.assert_close(copied.mean((2, 3)), expected, rtol=0, atol=0.02)


# What the correction reads


@pytest.mark.parametrize("name", [RESPONSE, GAP])
def test_response_and_gap_reach_the_correction(adapted: AdaptedPixel, name: int) -> None:
    features = adapted.encode(stripes(5, spot=True)).features
    before = adapted.model.maps(features)
    changed = features[name].clone()
    changed[:, :, : changed.shape[2] // 2] *= 0.3
    after = adapted.model.maps(features | {name: changed})
    assert (after[:, 1] / before[:, 1] - 1).abs().max() > 1e-3


def test_what_is_left_out_does_not_reach_it(model: PixelPreset) -> None:
    support = [stripes(shift) for shift in range(2)]
    query = stripes(5, spot=True)
    assert RESPONSE not in adapt(model.without(["response"]), support).encode(query).features
    blind = adapt(model.without(["gap"]), support)
    features = blind.encode(query).features
    other = features | {GAP: torch.rand_like(features[GAP])}
    assert torch.equal(blind.model.maps(features), blind.model.maps(other))


def test_a_map_does_not_depend_on_the_batch(adapted: AdaptedPixel) -> None:
    images = torch.cat([stripes(4, spot=True), 1 - stripes(0)])
    module = adapted.as_module()
    with torch.inference_mode():
        together = module(images)
        alone = torch.cat([module(image[None]) for image in images])
    # The order of sums in a matrix product depends on its size.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[0], adapted.anomaly_maps(images[:1]), rtol=1e-5, atol=1e-5)


# Files


@pytest.mark.parametrize("left_out", [(), ("response",), ("transformer",), ("gap", "adaptation")])
def test_state_restores_the_same_maps(model: PixelPreset, left_out: tuple[str, ...]) -> None:
    support = [stripes(shift, width=width) for shift, width in ((0, 144), (1, 96))]
    made = adapt(model.without(left_out), support)
    tensors, settings = made.state()
    preset, restored = PixelPreset.from_state(tensors, json.loads(json.dumps(settings)))
    assert preset.config == restored.config == made.config
    for query in (stripes(2, spot=True), stripes(2, spot=True, width=96)):
        assert torch.equal(restored.anomaly_maps(query), made.anomaly_maps(query))
    more = [each.extend([stripes(4)], seed=0).adapted for each in (made, restored)]
    first, second = (each.anomaly_maps(stripes(2, spot=True)) for each in more)
    assert torch.equal(first, second)


def test_a_file_of_the_earlier_model_is_refused(adapted: AdaptedPixel) -> None:
    tensors, settings = adapted.state()
    with pytest.raises(ValueError, match="version 99 of the pixel preset is not known"):
        AdaptedPixel.from_state(tensors, settings | {"version": 99})
    del settings["version"]  # version 1 had none
    with pytest.raises(ValueError, match=r"earlier version.*adapt again from the good images"):
        AdaptedPixel.from_state(tensors, settings)


def test_missing_weights_are_named(tmp_path: Any) -> None:
    with pytest.raises(UniversalWeightsError, match="universal weights cannot be used"):
        PixelPreset.from_pretrained(folder=tmp_path)


# The memory bank


def test_a_left_out_image_is_not_in_the_memory(model: PixelPreset) -> None:
    odd = stripes(0, spot=True)
    support = [stripes(0), stripes(1), odd]
    done = model.adapt(support, seed=0, on_step=lambda done, total: None)
    known = done.adapted.anomaly_maps(odd)
    for grid, left_out in zip(known, done.left_out[2], strict=True):
        assert left_out[SPOT].mean() > 1.5 * grid[SPOT].mean()


def test_sizes_may_be_mixed_and_the_memory_grows(model: PixelPreset) -> None:
    support = [stripes(0), stripes(1, width=96)]
    adapted = adapt(model, support)
    extension = adapted.extend([stripes(2, spot=True)], seed=0)
    more = extension.adapted
    assert isinstance(more, AdaptedPixel)
    assert (adapted.model.count, more.model.count) == (2, 3)
    assert more.backbone is adapted.backbone, "the autoencoder stays as it was fitted"
    assert extension.how == "recomputed" and len(extension.left_out) == 3
    earlier, bank = adapted.model.bank, more.model.bank
    assert earlier is not None and bank is not None
    assert len(earlier.rows["8"]) == 12 * (18 + 12)
    assert len(bank.rows["8"]) == 12 * (18 + 12 + 18)
    unknown, known = (each.anomaly_maps(stripes(2, spot=True)) for each in (adapted, more))
    assert known[0][SPOT].mean() < 0.7 * unknown[0][SPOT].mean()
    assert torch.isfinite(more.anomaly_maps(support[1])).all()


def test_beyond_so_many_images_moments_are_of_some(
    model: PixelPreset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of the others are made by the backbone, and they are in the memory bank too."""
    monkeypatch.setattr("metaformer.detection.pixel.preset.MOMENT_IMAGES", 2)
    plain = model.without(["transformer"])
    support = [stripes(0), stripes(3), stripes(0, spot=True)]
    found = adapt(plain, support)
    assert found.model.count == 3 and len(found.model.support) == 3
    for image in support:
        assert found.anomaly_maps(image).max() < 0.2 * found.anomaly_maps(1 - image).max()


# Aligned


def test_aligned_a_shift_that_a_memory_forgives_is_found(model: PixelPreset) -> None:
    """Half the stripes moved by six pixels: every patch is one of the support's."""
    aligned = model.with_config(aligned=True)
    with pytest.raises(ValueError, match=r"aligned mode .* leave out: adaptation\."):
        aligned.without(["transformer"])
    adapted = adapt(aligned, [stripes(0) for _ in range(2)])
    moved = stripes(0)
    moved[:, :, 48:] = stripes(6)[:, :, 48:]
    (raw,) = adapted.anomaly_maps(moved)
    assert raw.shape == (24, 36)
    changed = raw[14:, 2:-2].mean()
    by_place = changed / raw[:10, 2:-2].mean()
    assert by_place > 3
    (grid,) = adapt(model.without(["transformer"]), [stripes(0)]).anomaly_maps(moved)
    by_memory = grid[7:, 1:-1].mean() / grid[:5, 1:-1].mean()
    assert by_memory < 0.5 * by_place
    preset, restored = PixelPreset.from_state(*adapted.state())
    assert preset.config.aligned and torch.equal(restored.anomaly_maps(moved)[0], raw)
    more = adapted.extend([moved], seed=0).adapted
    (known,) = more.anomaly_maps(moved)
    assert known[14:, 2:-2].mean() < 0.5 * changed


def test_aligned_is_of_the_fast_mode() -> None:
    with pytest.raises(ValueError, match="fast mode"):
        PixelConfig(aligned=True, mode="long")


# The long mode


@pytest.mark.slow
def test_long_training_keeps_the_best(model: PixelPreset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_long, "STEPS", 6)
    monkeypatch.setattr(pixel_long, "CHECK_EVERY", 2)
    support = [stripes(shift) for shift in range(2)]
    backbone, found = fit_moments(model.autoencoder, model.prior, support, CONFIG)
    network = copy.deepcopy(model.network)
    losses: list[float] = []
    checked: list[float] = []

    def refine(adapted: AdaptedFeature, views: Any) -> None:
        losses.extend(pixel_long.Finetuning(adapted, support, views, seed=1).train())
        # The same defects again, by the transformer that was kept.
        kept = pixel_long.Finetuning(adapted, support, views, seed=1)
        examples = [kept.example() for _ in range(pixel_long.CHECK_QUERIES)]
        with torch.no_grad():
            checked.append(float(torch.stack([kept.loss(each) for each in examples]).mean()))

    images = [FeatureImage(of_image) for of_image in found]
    adapt_feature(CONFIG.comparison, backbone, images, network=network, seed=0, refine=refine)
    assert len(losses) == 4
    assert checked == [pytest.approx(min(losses), rel=1e-5)]
    assert min(losses) < losses[0]
    assert not any(p.requires_grad for p in network.parameters())
    assert any(
        not torch.equal(t, model.network.state_dict()[n]) for n, t in network.state_dict().items()
    )


def test_the_long_mode_trains_copies(model: PixelPreset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lone image too, which is then compared with itself."""
    monkeypatch.setattr(pixel_long, "STEPS", 1)
    monkeypatch.setattr(pixel_long, "CHECK_EVERY", 1)
    monkeypatch.setattr(pixel_long, "CHECK_QUERIES", 1)
    monkeypatch.setattr(pixel_long, "LEARNING_RATE", 1e-5)
    before = copy.deepcopy(model.network.state_dict())
    long = model.with_config(mode="long", long_steps=1)
    found = adapt(long, [stripes(0, width=96)])
    assert found.model.correction is not None
    trained = found.model.correction.network
    assert not any(p.requires_grad for p in trained.parameters())
    assert not any(p.requires_grad for p in found.backbone.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.network.state_dict().items())
    restored = AdaptedPixel.from_state(*found.state())
    query = stripes(5, spot=True, width=96)
    assert torch.equal(restored.anomaly_maps(query), found.anomaly_maps(query))


def test_long_fitting_keeps_the_autoencoder_at_its_best(
    model: PixelPreset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops when images left out are rebuilt no better, and goes back to the best."""
    monkeypatch.setattr(pixel_fit, "LONG_CHECK_EVERY", 2)
    images = [small(stripes(shift, width=96)) for shift in range(4)]
    autoencoder = fit(model.autoencoder, model.rates, images, torch.Generator())
    losses = fit_long(autoencoder, images, 12, torch.Generator().manual_seed(0))
    assert min(losses) < losses[0]
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0)).tolist()
    left_out, others = [images[order[0]]], [images[i] for i in order[1:]]
    assert check_loss(autoencoder, others, left_out) == min(losses)
    assert not any(p.requires_grad for p in autoencoder.parameters())

    monkeypatch.setattr(pixel_fit, "LONG_RATE", 10.0)  # never a gain: two checks, then it stops
    before = {name: t.clone() for name, t in autoencoder.state_dict().items()}
    assert len(fit_long(autoencoder, images, 12, torch.Generator().manual_seed(0))) == 3
    assert all(torch.equal(t, before[name]) for name, t in autoencoder.state_dict().items())


def test_an_image_is_shifted_within_reach() -> None:
    image = torch.arange(32.0).expand(1, 3, 32, 32)
    found = {int(shifted(image, torch.Generator().manual_seed(s))[0, 0, 0, 16]) for s in range(60)}
    assert min(found) == 16 - pixel_fit.LONG_REACH and max(found) == 16 + pixel_fit.LONG_REACH
    down = {
        int(shifted(image.mT, torch.Generator().manual_seed(s))[0, 0, 16, 0]) for s in range(60)
    }
    assert down == found


def test_settings_that_leave_parts_out_name_what_there_is() -> None:
    assert [*CONFIG.parts] == ["transformer", "response", "gap", "adaptation"]
    assert [*replace(CONFIG, transformer=False).parts] == ["adaptation"]
    assert [*PixelConfig().parts] == ["adaptation"]
    assert [*PixelConfig(mode="long").parts] == [*CONFIG.parts]
    assert [*replace(CONFIG, aligned=True).parts] == ["adaptation"]
