"""A is Table 1 of the supplement: shapes, parameters, work, and what normalisation promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metaformer.networks.autoencoder import Autoencoder, AutoencoderConfig

TABLE_1 = [  # layer, height = width, channels
    ("Conv1", 256, 32),
    ("MaxPool", 128, 32),
    ("Conv2", 128, 64),
    ("MaxPool", 64, 64),
    ("Conv3", 64, 128),
    ("MaxPool", 32, 128),
    ("Conv4", 32, 256),
    ("MaxPool", 16, 256),
    ("Conv5", 16, 512),
    ("MaxPool", 8, 512),
    ("AvgPool", 2, 512),
    ("Upsample", 16, 512),
    ("T.Conv1", 16, 256),
    ("Upsample", 32, 256),
    ("T.Conv2", 32, 128),
    ("Upsample", 64, 128),
    ("T.Conv3", 64, 64),
    ("Upsample", 128, 64),
    ("T.Conv4", 128, 32),
    ("Upsample", 256, 32),
    ("T.Conv5", 256, 3),
]
KINDS = {
    "Conv": "conv2d",
    "MaxPool": "max_pool2d",
    "AvgPool": "avg_pool2d",
    "Upsample": "interpolate",
    "T.Conv": "conv_transpose2d",
}


def images(count: int, side: int = 128, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


@torch.no_grad()
def test_every_shape_of_table_1(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, torch.Size]] = []

    def watch(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: object, **kwargs: object) -> Tensor:
            result: Tensor = real(*args, **kwargs)
            seen.append((name, result.shape))
            return result

        monkeypatch.setattr(owner, name, wrapped)

    for name in ("conv2d", "max_pool2d", "avg_pool2d", "interpolate", "conv_transpose2d"):
        watch(F, name)
    x = images(1, 256)
    out = Autoencoder()(x)

    # 21 layers after the input row, which is the 22nd shape of the table.
    assert x.shape == (1, 3, 256, 256)
    expected = [(KINDS[layer.rstrip("12345")], (1, c, s, s)) for layer, s, c in TABLE_1]
    assert [(name, tuple(shape)) for name, shape in seen] == expected
    assert out.shape == x.shape


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (AutoencoderConfig(), 8_711_747),
        (AutoencoderConfig(norm="group"), 8_711_747),
        (AutoencoderConfig(last="literal"), 8_711_750),
    ],
)
def test_parameter_count(config: AutoencoderConfig, count: int) -> None:
    assert sum(p.numel() for p in Autoencoder(config).parameters()) == count


@torch.no_grad()
def test_multiply_accumulate_count_at_256() -> None:
    with FlopCounterMode(display=False) as counter:
        Autoencoder()(images(1, 256))
    assert counter.get_total_flops() == 2 * 7_025_459_200


def test_bias_only_on_the_last_layer() -> None:
    biases = [
        name
        for name, module in Autoencoder().named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None
    ]
    assert biases == ["decoder_convs.4"]


@torch.no_grad()
def test_given_moments_an_image_does_not_depend_on_its_batch() -> None:
    model = Autoencoder()
    moments = model.support_moments(images(3, seed=1))
    batch = images(4, seed=2)
    alone = model(batch[:1], moments)
    together = model(batch, moments)[:1]
    with_others = model(torch.cat([batch[:1], 100 * batch[1:]]), moments)[:1]
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, with_others, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_moments_it_would() -> None:
    """The reason for ``SupportNorm``: batch statistics let one image change another's score."""
    model = Autoencoder()
    batch = images(4, seed=2)
    difference = model(batch[:1]) - model(torch.cat([batch[:1], 3 * batch[1:]]))[:1]
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_the_support_is_normalised_by_its_own_moments() -> None:
    model = Autoencoder()
    support = images(3)
    torch.testing.assert_close(
        model(support, model.support_moments(support)), model(support), rtol=0, atol=1e-4
    )


@torch.no_grad()
def test_group_norm_needs_no_support_and_ignores_the_batch() -> None:
    model = Autoencoder(AutoencoderConfig(norm="group"))
    batch = images(3)
    assert model.support_moments(batch) == {}
    torch.testing.assert_close(model(batch)[:1], model(batch[:1]), rtol=0, atol=1e-5)


def test_moments_carry_gradients() -> None:
    model = Autoencoder()
    support, query = images(2), images(1, seed=3)
    model(query, model.support_moments(support)).square().mean().backward()
    gradient = model.encoder_convs[0].weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
def test_sizes_other_than_256(upsample: str) -> None:
    model = Autoencoder(AutoencoderConfig(upsample=upsample))  # type: ignore[arg-type]
    x = torch.zeros(1, 3, 128, 384)
    assert model(x).shape == x.shape


@torch.no_grad()
def test_encode_and_decode_make_forward() -> None:
    model, x = Autoencoder(), images(2)
    moments = model.support_moments(x)
    *stages, code = model.encode(x, moments)
    assert [tuple(s.shape[1:]) for s in stages] == [(32 * 2**i, 64 >> i, 64 >> i) for i in range(5)]
    assert torch.equal(model.decode(code, moments), model(x, moments))


@torch.no_grad()
def test_the_first_stages_alone_are_those_of_a_whole_pass() -> None:
    model, x = Autoencoder(), images(2)
    stages, moments = model.read_stages(4, x[:1], x[1:])
    whole = model.encode(x, model.support_moments(x))
    assert moments.keys() == {f"encoder.{i}" for i in range(4)}
    for i in range(4):
        found = torch.cat([of_image[i] for of_image in stages])
        torch.testing.assert_close(found, whole[i], rtol=1e-4, atol=1e-4)
    small = torch.zeros(1, 3, 48, 80)  # multiples of 16 are enough
    (found_stages,), _ = model.read_stages(4, small, moments=moments)
    assert found_stages[-1].shape == (1, 256, 3, 5)
    with pytest.raises(ValueError, match="multiples of 16, got 40 x 80"):
        model.read_stages(4, torch.zeros(1, 3, 40, 80))


@pytest.mark.parametrize(
    "shape", [(3, 256, 256), (1, 1, 256, 256), (1, 3, 200, 256), (1, 3, 0, 128)]
)
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="autoencoder takes"):
        Autoencoder()(torch.zeros(shape))
