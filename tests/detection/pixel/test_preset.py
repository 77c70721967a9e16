"""The pixel preset: adapting helps, and a score depends on its image and the support alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metaformer.detection.pixel.finetuning as pixel_long
import metaformer.detection.pixel.fitting as pixel_fit
from metaformer.detection.pixel.adapted import AdaptedPixel
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.fitting import (
    check_loss,
    fit,
    fit_long,
    read_support,
    shifted,
    squeezed,
)
from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.prepared_image import PreparedImage, padded
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.pixel.universal_model import UniversalModel
from metaformer.detection.pixel.universal_weights import UniversalWeightsError
from metaformer.networks.instance_prior import InstancePrior

CONFIG = PixelConfig(resolution=128)


def stripes(shift: int, *, spot: bool = False, width: int = 144) -> Tensor:
    """(1, 3, 96, width) in [0, 1]: a regular pattern, with a blob if ``spot``."""
    columns = ((torch.arange(width) + shift) % 12 < 6).float() * 0.6 + 0.2
    image = columns.expand(1, 3, 96, width).clone()
    if spot:
        image[:, :, 40:56, 60:76] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return image


def adapt(preset: PixelPreset, support: list[PreparedImage], *, seed: int) -> AdaptedPixel:
    found = preset.adapt(support, seed=seed, on_step=lambda done, total: None).adapted
    assert isinstance(found, AdaptedPixel)
    return found


def extended(adapted: AdaptedPixel, new: list[PreparedImage]) -> AdaptedPixel:
    found = adapted.extend(new, seed=0).adapted
    assert isinstance(found, AdaptedPixel)
    return found


@pytest.fixture(scope="module")
def model() -> PixelPreset:
    torch.manual_seed(0)
    universal = UniversalModel()
    rates = InnerRates(universal.autoencoder, 2, 0.05)
    prior = InstancePrior().eval().requires_grad_(False)
    return PixelPreset(CONFIG, universal, rates.requires_grad_(False), prior)


@pytest.fixture(scope="module")
def adapted(model: PixelPreset) -> AdaptedPixel:
    return adapt(model, [model.prepare(stripes(s)) for s in range(3)], seed=0)


def test_padding_is_cut_off_again(model: PixelPreset, adapted: AdaptedPixel) -> None:
    prepared = model.prepare(stripes(0))
    assert prepared.pixels.shape == (1, 3, 96, 144), "nothing is rebuilt, so nothing padded"
    assert prepared.response is None, "T has no say in the fast mode"
    assert adapted.anomaly_maps(prepared).shape == (1, 96 // 4, 144 // 4)
    with_gap = PixelPreset(replace(CONFIG, gap=True), model.universal, model.rates, model.prior)
    prepared = with_gap.prepare(stripes(0))
    assert prepared.pixels.shape == (1, 3, 128, 256)
    found = adapt(with_gap, [prepared], seed=0)
    assert found.anomaly_maps(prepared).shape == (1, 96 // 4, 144 // 4)


def test_a_spot_stands_out(model: PixelPreset, adapted: AdaptedPixel) -> None:
    (raw,) = adapted.anomaly_maps(model.prepare(stripes(5, spot=True)))
    inside = raw[10:14, 15:19].mean()
    outside = torch.cat([raw[:, :10].flatten(), raw[:, 26:].flatten()]).mean()
    assert inside > 1.5 * outside


def test_same_seed_same_detector(model: PixelPreset, adapted: AdaptedPixel) -> None:
    again = adapt(model, [model.prepare(stripes(s)) for s in range(3)], seed=0)
    query = model.prepare(stripes(7, spot=True))
    assert torch.equal(adapted.anomaly_maps(query), again.anomaly_maps(query))


def test_adapting_leaves_the_universal_weights_alone(model: PixelPreset) -> None:
    before = {name: t.clone() for name, t in model.universal.state_dict().items()}
    fitted = adapt(model, [model.prepare(stripes(0))], seed=1).universal
    for name, tensor in model.universal.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    moved = [not torch.equal(t, before[name]) for name, t in fitted.state_dict().items()]
    assert any(moved)


def test_adapting_lowers_the_reconstruction_error(model: PixelPreset) -> None:
    images = [squeezed(model.prepare(stripes(s)).pixels) for s in range(3)]
    fitted = fit(model.universal, model.rates, images, torch.Generator())

    @torch.no_grad()
    def error(universal: UniversalModel) -> float:
        moments, _ = read_support(universal.autoencoder, images, torch.Generator())
        x = squeezed(model.prepare(stripes(7)).pixels)
        return float(F.mse_loss(universal.autoencoder(x, moments), x))

    assert error(fitted) < error(model.universal)


def test_the_pass_for_the_moments_is_the_reading_by_them(model: PixelPreset) -> None:
    autoencoder = model.universal.autoencoder
    images = [padded(stripes(s, width=w) * 2 - 1) for s, w in ((0, 144), (1, 96), (2, 144))]
    moments, passes = read_support(autoencoder, images, torch.Generator())
    assert sorted(passes) == [0, 1, 2]
    for i, image in enumerate(images):
        with torch.no_grad():
            stages, rebuilt, _ = autoencoder.read(image, moments)
        for one, other in zip([*stages, rebuilt], [*passes[i][0], passes[i][1]], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    of_encoder, fewer = read_support(autoencoder, images, torch.Generator(), rebuild=False)
    assert of_encoder.keys() == {f"encoder.{i}" for i in range(4)}
    for name, (mean, variance) in of_encoder.items():
        torch.testing.assert_close(mean, moments[name][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(variance, moments[name][1], rtol=1e-3, atol=1e-4)
    for i, (stages, rebuilt) in fewer.items():
        assert rebuilt is None
        for one, other in zip(stages, passes[i][0][:4], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_state_restores_the_same_map(model: PixelPreset, adapted: AdaptedPixel) -> None:
    tensors, settings = adapted.state()
    restored = AdaptedPixel.from_state(tensors, settings)
    query = model.prepare(stripes(2, spot=True))
    assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))


def test_the_gap_has_a_share_only_where_asked(model: PixelPreset, adapted: AdaptedPixel) -> None:
    """And has it in files from before it could be left out, which do not name it."""
    with_gap = PixelPreset(replace(CONFIG, gap=True), model.universal, model.rates, model.prior)
    other = adapt(with_gap, [with_gap.prepare(stripes(s)) for s in range(3)], seed=0)
    assert adapted.memory is not None and other.memory is not None
    assert len(adapted.memory.distance_scale) == 3 and len(other.memory.distance_scale) == 4
    query = with_gap.prepare(stripes(2, spot=True))
    raw = other.anomaly_maps(query)
    without = adapted.anomaly_maps(model.prepare(stripes(2, spot=True)))
    assert not torch.allclose(raw, without, rtol=0.01)
    tensors, settings = other.state()
    del settings["config"]["gap"]
    assert torch.equal(AdaptedPixel.from_state(tensors, settings).anomaly_maps(query), raw)


def test_a_left_out_image_is_not_in_the_memory(model: PixelPreset) -> None:
    odd = model.prepare(stripes(0, spot=True))
    support = [model.prepare(stripes(s)) for s in (0, 1)] + [odd]
    done = model.adapt(support, seed=0, on_step=lambda done, total: None)
    known = done.adapted.anomaly_maps(odd)[0, 10:14, 15:19].mean()
    left_out = done.left_out[2][0, 10:14, 15:19].mean()
    assert left_out > 1.5 * known


def test_sizes_may_be_mixed_and_the_memory_grows(model: PixelPreset) -> None:
    support = [model.prepare(stripes(0)), model.prepare(stripes(1, width=96))]
    adapted = adapt(model, support, seed=0)
    more = extended(adapted, [model.prepare(stripes(2))])
    assert adapted.memory is not None and more.memory is not None
    assert more.memory.images == 3
    for level, memory in adapted.memory.features.items():
        assert len(memory) <= len(more.memory.features[level]) <= CONFIG.max_tokens
    assert torch.isfinite(more.anomaly_maps(support[1])).all()


def test_aligned_a_shift_that_a_memory_forgives_is_found(model: PixelPreset) -> None:
    """Half the stripes moved by six pixels: every patch is one of the support's."""
    aligned = PixelPreset(replace(CONFIG, aligned=True), model.universal, model.rates, model.prior)
    adapted = adapt(aligned, [aligned.prepare(stripes(0)) for _ in range(2)], seed=0)
    moved = stripes(0)
    moved[:, :, 48:] = stripes(6)[:, :, 48:]
    (raw,) = adapted.anomaly_maps(aligned.prepare(moved))
    assert raw[14:, 2:-2].mean() > 3 * raw[:10, 2:-2].mean()
    tensors, settings = adapted.state()
    restored = AdaptedPixel.from_state(tensors, settings)
    assert torch.equal(restored.anomaly_maps(aligned.prepare(moved))[0], raw)
    more = extended(adapted, [aligned.prepare(moved)])
    (known,) = more.anomaly_maps(aligned.prepare(moved))
    assert known[14:, 2:-2].mean() < 0.5 * raw[14:, 2:-2].mean()
    assert len(more.memory.templates) == 3  # type: ignore[union-attr]


@pytest.mark.slow
def test_long_training_keeps_the_best(model: PixelPreset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_long, "STEPS", 4)
    monkeypatch.setattr(pixel_long, "CHECK_EVERY", 2)
    config = replace(CONFIG, mode="long", long_steps=2)
    long = PixelPreset(config, model.universal, model.rates, model.prior)
    support = [long.prepare(stripes(s)) for s in range(2)]
    adapted = adapt(long, support, seed=0)
    adapted.encoded_images = [
        adapted.encode(image) for image in support
    ]  # let go of after adapting
    losses = pixel_long.train_transformer(adapted, support, seed=1)
    assert len(losses) == 3
    assert not any(p.requires_grad for p in adapted.universal.parameters())


def test_long_fitting_keeps_a_at_its_best(
    model: PixelPreset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops when images left out are rebuilt no better, and goes back to the best."""
    monkeypatch.setattr(pixel_fit, "LONG_CHECK_EVERY", 2)
    images = [squeezed(stripes(s, width=96) * 2 - 1) for s in range(4)]
    autoencoder = fit(model.universal, model.rates, images, torch.Generator()).autoencoder
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


def test_an_image_is_squeezed_to_the_nearest_sides() -> None:
    for sides, expected in {
        (288, 224): (256, 256),
        (96, 144): (128, 128),
        (256, 128): (256, 128),
    }.items():
        image = torch.rand(1, 3, *sides) * 2 - 1
        assert squeezed(image).shape[2:] == expected
        assert float(squeezed(image).mean()) == pytest.approx(float(image.mean()), abs=0.02)


def test_an_image_is_shifted_within_reach() -> None:
    image = torch.arange(32.0).expand(1, 3, 32, 32)
    found = {int(shifted(image, torch.Generator().manual_seed(s))[0, 0, 0, 16]) for s in range(60)}
    assert min(found) >= 8 and max(found) <= 24 and len(found) > 10


def test_missing_weights_are_named(tmp_path: object) -> None:
    with pytest.raises(UniversalWeightsError, match="universal weights cannot be used"):
        PixelPreset.from_pretrained(folder=tmp_path)  # type: ignore[arg-type]
