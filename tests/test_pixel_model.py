"""The pixel preset: adapting helps, and a score depends on its image and the support alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.autoencoder import Autoencoder
from metaformer.pixel_model import AdaptedPixel, PixelConfig, PixelModel, support_moments

CONFIG = PixelConfig(resolution=128)


def stripes(shift: int, *, spot: bool = False) -> Tensor:
    """(1, 3, 96, 144) in [0, 1]: a regular pattern, with a blob if ``spot``."""
    columns = ((torch.arange(144) + shift) % 12 < 6).float() * 0.6 + 0.2
    image = columns.expand(1, 3, 96, 144).clone()
    if spot:
        image[:, :, 40:56, 60:76] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return image


@pytest.fixture(scope="module")
def model() -> PixelModel:
    torch.manual_seed(0)
    return PixelModel(CONFIG, Autoencoder().eval())


@pytest.fixture(scope="module")
def adapted(model: PixelModel) -> AdaptedPixel:
    return model.adapt([model.prepare(stripes(s)) for s in range(3)], seed=0)


def test_padding_is_cut_off_again(model: PixelModel, adapted: AdaptedPixel) -> None:
    prepared = model.prepare(stripes(0))
    assert prepared.pixels.shape == (1, 3, 128, 256)
    assert adapted.anomaly_map(prepared).shape == (96 // 4, 144 // 4)


def test_a_spot_stands_out(model: PixelModel, adapted: AdaptedPixel) -> None:
    raw = adapted.anomaly_map(model.prepare(stripes(5, spot=True)))
    inside = raw[10:14, 15:19].mean()
    outside = torch.cat([raw[:, :10].flatten(), raw[:, 26:].flatten()]).mean()
    assert inside > 1.5 * outside


def test_same_seed_same_detector(model: PixelModel, adapted: AdaptedPixel) -> None:
    again = model.adapt([model.prepare(stripes(s)) for s in range(3)], seed=0)
    query = model.prepare(stripes(7, spot=True))
    assert torch.equal(adapted.anomaly_map(query), again.anomaly_map(query))


def test_adapting_leaves_the_universal_weights_alone(model: PixelModel) -> None:
    before = {name: t.clone() for name, t in model.autoencoder.state_dict().items()}
    model.adapt([model.prepare(stripes(0))], seed=1)
    for name, tensor in model.autoencoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_adapting_lowers_the_reconstruction_error(model: PixelModel) -> None:
    support = [model.prepare(stripes(s)) for s in range(3)]
    config = PixelConfig(resolution=128, steps=8)
    fitted = PixelModel(config, model.autoencoder).adapt(support, seed=0)

    @torch.no_grad()
    def error(autoencoder: Autoencoder) -> float:
        moments = support_moments(autoencoder, support, torch.Generator())
        x = model.prepare(stripes(7)).pixels
        return float(F.mse_loss(autoencoder(x, moments), x))

    assert error(fitted.autoencoder) < 0.8 * error(model.autoencoder)


def test_state_restores_the_same_map(model: PixelModel, adapted: AdaptedPixel) -> None:
    tensors, settings = adapted.state()
    restored = AdaptedPixel.from_state(tensors, settings)
    query = model.prepare(stripes(2, spot=True))
    assert torch.equal(restored.anomaly_map(query), adapted.anomaly_map(query))


def test_moments_of_mixed_sizes_count_every_pixel_once() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder()
    batch = torch.rand(3, 3, 128, 128)
    with torch.no_grad():
        together = autoencoder.support_moments(batch)
        apart = autoencoder.support_moments(batch[:1], batch[1:])
    for name, (mean, variance) in together.items():
        torch.testing.assert_close(apart[name][0], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(apart[name][1], variance, rtol=1e-4, atol=1e-5)
