"""The universal model: what it starts as, what it depends on, and what it ignores."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.detection.nearest_neighbors import as_columns, nearest_distance
from metaformer.detection.pixel.encoder_output import (
    CELL,
    FINE,
    LEVELS,
    TOKEN_CHANNELS,
    EncoderOutput,
    crop,
    to_encoder_output,
)
from metaformer.detection.pixel.support_memory import (
    LEAST_SCALE,
    build_memory,
    mean_distance_between,
    spread,
)
from metaformer.detection.pixel.universal_model import (
    Output,
    UniversalConfig,
    UniversalModel,
    respond,
)
from metaformer.networks.autoencoder import Autoencoder, Moments
from metaformer.networks.instance_prior import InstancePrior, load_prior
from metaformer.networks.pixel_transformer import Response

PRIOR = load_prior()
SMALL = UniversalConfig(width=16, heads=2, layers=1)
seeds = st.integers(0, 10_000)


def photos(count: int, seed: int, height: int = 128, width: int = 128) -> Tensor:
    """Images of one fabric, (count, 3, height, width) in [-1, 1]: other threads in each."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=g) * 0.6 - 0.3
    weave = 0.4 * torch.sin(torch.arange(width) * 0.8)
    grain = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (grain + weave).clamp(-1, 1)


def with_spot(images: Tensor) -> Tensor:
    """The same with a bright square, rows 48 to 72 and columns 64 to 88."""
    spoilt = images.clone()
    spoilt[:, :, 48:72, 64:88] = torch.tensor([1.0, 1.0, -1.0])[:, None, None]
    return spoilt


def make(config: UniversalConfig = SMALL, *, trained: bool = False) -> UniversalModel:
    torch.manual_seed(0)
    model = UniversalModel(config).requires_grad_(False)
    if trained and model.transformer is not None:  # away from the start, where T is silent
        for parameter in model.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.transformer.openness.fill_(0.5)
    return model


def read_support(
    autoencoder: Autoencoder, prior: InstancePrior, support: Tensor
) -> tuple[EncoderOutput, Moments]:
    """Read a support of one image size, (K, 3, H, W), by its own moments."""
    stages, rebuilt, moments = autoencoder.read(support)
    return to_encoder_output(support, stages, rebuilt, respond(prior, support)), moments


def read_query(
    autoencoder: Autoencoder, prior: InstancePrior, images: Tensor, moments: Moments
) -> EncoderOutput:
    """Read images (B, 3, H, W) by the moments of a support."""
    stages, rebuilt, _ = autoencoder.read(images, moments)
    return to_encoder_output(images, stages, rebuilt, respond(prior, images))


@pytest.fixture(scope="module")
def model() -> UniversalModel:
    return make()


@pytest.fixture(scope="module")
def trained() -> UniversalModel:
    return make(trained=True)


@pytest.fixture(scope="module")
def support(model: UniversalModel) -> tuple[EncoderOutput, Moments]:
    """Two images of the fabric, read by A; its weights are the same in all models here."""
    return read_support(model.autoencoder, PRIOR, photos(2, 1))


@pytest.fixture(scope="module")
def queries(model: UniversalModel, support: tuple[EncoderOutput, Moments]) -> EncoderOutput:
    """A good image, and the same with a spot."""
    good = photos(1, 2)
    images = torch.cat([good, with_spot(good)])
    return read_query(model.autoencoder, PRIOR, images, support[1])


def part(encoded: EncoderOutput, index: slice) -> EncoderOutput:
    return EncoderOutput(
        {stride: grid[index] for stride, grid in encoded.features.items()},
        encoded.gap[index],
        encoded.rebuilt[index],
        encoded.response[index],
    )


def with_response(encoded: EncoderOutput, seed: int) -> EncoderOutput:
    g = torch.Generator().manual_seed(seed)
    return replace(encoded, response=torch.rand(encoded.response.shape, generator=g))


def close(one: Output, other: Output, tolerance: float = 1e-4) -> None:
    for field in fields(Output):
        first, second = getattr(one, field.name), getattr(other, field.name)
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def test_shapes_of_a_reading_and_of_what_is_known(
    support: tuple[EncoderOutput, Moments], queries: EncoderOutput
) -> None:
    assert {level: tuple(grid.shape) for level, grid in queries.features.items()} == {
        4: (2, 64, 32, 32),
        8: (2, 128, 16, 16),
        16: (2, 256, 8, 8),
    }
    for grid in queries.features.values():
        torch.testing.assert_close(grid.norm(dim=1), torch.ones(grid.shape[0], *grid.shape[2:]))
    assert queries.gap.shape == (2, 11, 32, 32)
    assert queries.response.shape == (2, 16, 16)
    assert queries.tokens().shape == (2, 256, TOKEN_CHANNELS)

    memory = build_memory([support[0]])
    assert memory.images == 2
    assert memory.tokens.shape == (2 * 256, TOKEN_CHANNELS)
    assert memory.positions.shape == (2 * 256, 2)
    assert memory.response.shape == (2 * 256,)
    assert {level: len(cells) for level, cells in memory.features.items()} == {
        level: 2 * (128 // level) ** 2 for level in LEVELS
    }
    assert memory.distance_scale.shape == (len(LEVELS) + 1,)


def test_tokens_are_row_by_row(queries: EncoderOutput) -> None:
    rows, columns = queries.response.shape[1:]
    tokens = queries.tokens().unflatten(1, (rows, columns))
    at_8 = queries.features[8] * queries.features[8].shape[1] ** 0.5
    start = queries.features[4].shape[1]
    torch.testing.assert_close(
        tokens[..., start : start + at_8.shape[1]], at_8.permute(0, 2, 3, 1), rtol=0, atol=1e-5
    )


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_it_starts_as_the_first_map_whatever_the_response(
    model: UniversalModel, support: tuple[EncoderOutput, Moments], queries: EncoderOutput, seed: int
) -> None:
    memory = build_memory([with_response(support[0], seed)])
    output = model(with_response(queries, seed + 1), memory)
    assert torch.equal(output.anomaly, output.first)
    assert torch.equal(output.refined, queries.rebuilt)


@pytest.mark.parametrize("shots", [1, 3])
def test_about_1_where_all_is_normal_and_more_on_a_defect(
    model: UniversalModel, shots: int
) -> None:
    support, moments = read_support(model.autoencoder, PRIOR, photos(shots, 1))
    good = photos(1, 2)
    query = read_query(model.autoencoder, PRIOR, torch.cat([good, with_spot(good)]), moments)
    normal, spoilt = model(query, build_memory([support])).anomaly
    assert normal.shape == (128 // FINE, 128 // FINE)
    # One image is compared with half of itself, which holds less, so that the unit is larger.
    assert normal.mean() == pytest.approx(1, abs=0.2)
    spot = slice(48 // FINE, 72 // FINE), slice(64 // FINE, 88 // FINE)
    assert spoilt[spot].mean() > normal[spot].mean() + 0.2
    assert spoilt[spot].mean() > spoilt[:8].mean() + 0.2
    row, column = divmod(int(spoilt.argmax()), spoilt.shape[1])
    # Within the receptive field of the coarsest level.
    assert 48 - 32 <= row * FINE <= 72 + 32
    assert 64 - 32 <= column * FINE <= 88 + 32


def test_an_images_map_does_not_depend_on_its_batch(
    trained: UniversalModel, support: tuple[EncoderOutput, Moments]
) -> None:
    memory = build_memory([support[0]])
    images = torch.cat([photos(1, 2), with_spot(photos(1, 3)), torch.ones(1, 3, 128, 128)])
    among = read_query(trained.autoencoder, PRIOR, images, support[1])
    alone = read_query(trained.autoencoder, PRIOR, images[:1], support[1])
    found = trained(among, memory)
    first = Output(found.anomaly[:1], found.first[:1], found.refined[:1])
    close(first, trained(alone, memory))


def test_order_of_the_support_does_not_count(trained: UniversalModel) -> None:
    images, query = photos(3, 1), with_spot(photos(1, 2))
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        encoded, moments = read_support(trained.autoencoder, PRIOR, images[order])
        asked = read_query(trained.autoencoder, PRIOR, query, moments)
        found.append(trained(asked, build_memory([encoded])))
    close(*found)


def test_a_support_may_come_in_several_readings(
    trained: UniversalModel, support: tuple[EncoderOutput, Moments], queries: EncoderOutput
) -> None:
    whole = build_memory([support[0]])
    apart = build_memory([part(support[0], slice(0, 1)), part(support[0], slice(1, 2))])
    assert apart.images == whole.images == 2
    close(trained(queries, whole), trained(queries, apart))


def test_rectangular_images_and_a_support_of_another_size(trained: UniversalModel) -> None:
    support, moments = read_support(trained.autoencoder, PRIOR, photos(1, 1, 128, 256))
    wide = read_query(trained.autoencoder, PRIOR, photos(1, 2, 128, 256), moments)
    found = trained(wide, build_memory([support]))
    assert found.anomaly.shape == found.first.shape == (1, 32, 64)
    assert found.refined.shape == (1, 3, 128, 256)

    tall = read_query(trained.autoencoder, PRIOR, photos(1, 3, 256, 128), moments)
    assert trained(tall, build_memory([support])).anomaly.shape == (1, 64, 32)


def test_a_spot_is_found_where_it_is_in_a_rectangle(model: UniversalModel) -> None:
    support, moments = read_support(model.autoencoder, PRIOR, photos(1, 1, 128, 256))
    image = photos(1, 2, 128, 256)
    image[:, :, 96:120, 200:224] = 1.0
    query = read_query(model.autoencoder, PRIOR, image, moments)
    anomaly = model(query, build_memory([support])).anomaly[0]
    row, column = divmod(int(anomaly.argmax()), anomaly.shape[1])
    assert row * FINE >= 96 - 32
    assert 200 - 32 <= column * FINE <= 224 + 32


def test_cropping_leaves_out_the_padding(
    trained: UniversalModel, support: tuple[EncoderOutput, Moments], queries: EncoderOutput
) -> None:
    cut = crop(queries, 96, 112)
    assert cut.rebuilt.shape == (2, 3, 96, 112)
    assert cut.gap.shape == (2, 11, 24, 28)
    assert cut.response.shape == (2, 12, 14)
    assert cut.features[16].shape == (2, 256, 6, 7)
    assert cut.tokens().shape == (2, 12 * 14, TOKEN_CHANNELS)
    memory = build_memory([crop(support[0], 96, 112)])
    assert memory.tokens.shape[0] == 2 * 12 * 14
    assert memory.features[16].shape[0] == 2 * 6 * 7
    assert trained(cut, memory).anomaly.shape == (2, 24, 28)
    for encoded in (cut, crop(queries, 128, 128)):
        assert torch.equal(
            encoded.gap, queries.gap[:, :, : encoded.gap.shape[2], : encoded.gap.shape[3]]
        )


def test_one_image_is_compared_with_itself(model: UniversalModel) -> None:
    support, moments = read_support(model.autoencoder, PRIOR, photos(1, 1))
    memory = build_memory([support])
    assert memory.images == 1
    assert (memory.distance_scale > LEAST_SCALE).all()
    query = read_query(model.autoencoder, PRIOR, photos(1, 1), moments)
    # The image itself has distance zero; only the gap is left.
    shares = model.mix.softmax(0)
    first = model(query, memory).first
    assert first.mean() == pytest.approx(float(shares[-1]), abs=0.05)


def test_flat_images_have_a_typical_distance_above_zero(trained: UniversalModel) -> None:
    flat = torch.full((2, 3, 128, 128), 0.2)
    support, moments = read_support(trained.autoencoder, PRIOR, flat)
    memory = build_memory([support])
    assert (memory.distance_scale >= LEAST_SCALE).all()
    spoilt = with_spot(flat[:1])
    query = read_query(trained.autoencoder, PRIOR, torch.cat([flat[:1], spoilt]), moments)
    found = trained(query, memory)
    for field in fields(Output):
        assert getattr(found, field.name).isfinite().all()
    assert found.first[1].max() > found.first[0].max() + 0.5


@settings(max_examples=20, deadline=None)
@given(seed=seeds, count=st.integers(1, 4), rows=st.integers(2, 700))
def test_typical_distance_is_a_distance_and_has_no_order(seed: int, count: int, rows: int) -> None:
    g = torch.Generator().manual_seed(seed)
    images = [
        torch.nn.functional.normalize(torch.randn(rows, 4, generator=g), dim=1)
        for _ in range(count)
    ]
    distance = mean_distance_between(images)
    assert 0 <= distance <= 2
    torch.testing.assert_close(distance, mean_distance_between(images[::-1]), rtol=1e-4, atol=1e-6)
    same = images[:1] * 3
    assert mean_distance_between(same) < 1e-5


def test_without_t_the_first_map_is_the_last(
    queries: EncoderOutput, support: tuple[EncoderOutput, Moments]
) -> None:
    plain = make(replace(SMALL, transformer=False))
    assert plain.transformer is None
    memory = build_memory([support[0]])
    found = plain(queries, memory)
    assert torch.equal(found.anomaly, found.first)
    assert torch.equal(found.refined, queries.rebuilt)
    other = plain(with_response(queries, 1), memory)
    assert torch.equal(found.anomaly, other.anomaly)
    # Neither T's weights nor the response change what is first.
    assert torch.equal(found.first, make(trained=True)(queries, memory).first)


def test_without_support_attention_t_does_not_read_the_supports_tokens(
    trained: UniversalModel, support: tuple[EncoderOutput, Moments], queries: EncoderOutput
) -> None:
    memory = build_memory([support[0]])
    g = torch.Generator().manual_seed(0)
    changed = replace(
        memory,
        tokens=torch.randn(memory.tokens.shape, generator=g),
        response=torch.rand(memory.response.shape, generator=g),
    )
    blind = make(replace(SMALL, support_attention=False), trained=True)
    assert torch.equal(blind(queries, memory).anomaly, blind(queries, changed).anomaly)
    assert not torch.equal(trained(queries, memory).anomaly, trained(queries, changed).anomaly)


@pytest.mark.parametrize("response", ["none", "gate", "bias", "both"])
def test_the_response_does_what_its_variant_says(
    response: Response, support: tuple[EncoderOutput, Moments], queries: EncoderOutput
) -> None:
    variant = make(replace(SMALL, response=response), trained=True)
    memory = build_memory([support[0]])
    other = build_memory([with_response(support[0], 1)])
    asked = with_response(queries, 2)
    one, two = variant(queries, memory), variant(asked, other)
    assert torch.equal(one.anomaly, two.anomaly) == (response == "none")
    # The gate works on the map alone; the bias reaches the reconstruction as well.
    assert torch.equal(one.refined, two.refined) == (response in ("none", "gate"))
    assert torch.equal(one.first, two.first)


def test_state_is_kept(
    trained: UniversalModel, support: tuple[EncoderOutput, Moments], queries: EncoderOutput
) -> None:
    memory = build_memory([support[0]])
    again = make()
    assert not torch.equal(again(queries, memory).anomaly, trained(queries, memory).anomaly)
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again(queries, memory).anomaly, trained(queries, memory).anomaly)
    names = set(trained.state_dict())
    assert {"mix", "slope", "offset"} < names
    assert not any("prior" in name for name in names), "P is given from outside"


def test_logits_rise_with_the_map(model: UniversalModel) -> None:
    logits = model.logits(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    assert (logits.diff() > 0).all()
    assert logits[1] < 0 < logits[3], "1 is normal; 3 is not"


def test_gradients_reach_the_support_through_what_is_known() -> None:
    torch.manual_seed(0)
    model = UniversalModel(SMALL)
    images = photos(1, 1).requires_grad_()
    encoded, moments = read_support(model.autoencoder, PRIOR, images)
    query = read_query(model.autoencoder, PRIOR, photos(1, 2), moments)
    model(query, build_memory([encoded])).anomaly.mean().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in PRIOR.parameters())


def test_values_of_the_map_and_tokens_fit() -> None:
    """The correction of a token is spread over its values of the map, row by row."""
    assert CELL % FINE == 0
    model = make()
    assert model.transformer is not None
    support, moments = read_support(model.autoencoder, PRIOR, photos(1, 1))
    query = read_query(model.autoencoder, PRIOR, photos(1, 2), moments)
    model.transformer.correction.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    found = model(query, build_memory([support]))
    block = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(16, 16)
    torch.testing.assert_close(found.anomaly[0] - found.first[0], block, rtol=0, atol=1e-5)


def test_without_a_response_the_map_is_that_before_t(trained: UniversalModel) -> None:
    model = trained
    x = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        stages, rebuilt, _ = model.autoencoder.read(x)
    whole = to_encoder_output(x, stages, rebuilt, torch.ones_like(x[:, :1]))
    plain = to_encoder_output(x, stages, rebuilt, None)
    found = model(plain, build_memory([plain]))
    assert torch.equal(found.anomaly, model(whole, build_memory([whole])).first)
    assert torch.equal(found.anomaly, found.first)
    assert not len(build_memory([plain]).tokens)
    with pytest.raises(ValueError, match="needs the response map"):
        plain.tokens()


def test_typical_distance_is_that_to_the_other_images() -> None:
    """As by putting the others together, which copies them for each image."""
    g = torch.Generator().manual_seed(0)
    images = [
        torch.nn.functional.normalize(torch.randn(n, 8, generator=g), dim=1)
        for n in (5000, 3000, 4000)
    ]
    expected = []
    for i, image in enumerate(images):
        others = torch.cat([other for j, other in enumerate(images) if j != i])
        bank = as_columns(spread(others, 8192), euclidean=False)
        expected.append(nearest_distance(spread(image, 320), bank, euclidean=False))
    assert torch.equal(mean_distance_between(images), torch.cat(expected).mean())
