"""The instance prior P, the effect editors, the critic's gradient penalty, the shipped weights."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch.utils.flop_counter import FlopCounterMode

from metaformer.detection.metaformer import Metaformer
from metaformer.networks.instance_prior import (
    CARD,
    EFFECTS,
    WEIGHTS,
    Critic,
    InstancePrior,
    PriorConfig,
    PriorWeightsError,
    apply_effects,
    edit,
    gradient_penalty,
    load_prior,
    prior_from_bytes,
    shrink,
)

TINY = PriorConfig(side=32, width=8)


def photos(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def shipped() -> tuple[bytes, str]:
    folder = resources.files("metaformer.networks.weights")
    return (folder / WEIGHTS).read_bytes(), (folder / CARD).read_text(encoding="utf-8")


@given(height=st.integers(1, 90), width=st.integers(1, 90))
@settings(max_examples=25, deadline=None)
def test_response_has_the_size_of_the_photo_and_lies_between_0_and_1(
    height: int, width: int
) -> None:
    torch.manual_seed(0)
    prior = InstancePrior(TINY).eval()
    response = prior(photos(2, 3, height, width))
    assert response.shape == (2, 1, height, width)
    assert response.dtype == torch.float32
    assert bool(((response >= 0) & (response <= 1)).all())


sides = st.integers(1, 90)


@given(height=sides, width=sides, side=sides, value=st.floats(-1, 1))
@settings(max_examples=50, deadline=None)
def test_a_constant_image_shrinks_to_the_same_constant(
    height: int, width: int, side: int, value: float
) -> None:
    found = shrink(torch.full((1, 2, height, width), value), side)
    torch.testing.assert_close(found, torch.full((1, 2, side, side), value), rtol=0, atol=1e-5)


@given(side=st.integers(1, 40), more=st.tuples(*[st.integers(0, 90)] * 2), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_shrinking_keeps_the_mean(side: int, more: tuple[int, int], seed: int) -> None:
    images = photos(2, 3, side + more[0], side + more[1], seed=seed)
    means = shrink(images, side).mean((2, 3))
    torch.testing.assert_close(means, images.mean((2, 3)), rtol=0, atol=1e-5)


@given(side=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_an_image_of_that_size_stays_as_it_is(side: int, seed: int) -> None:
    images = photos(1, 3, side, side, seed=seed)
    torch.testing.assert_close(shrink(images, side), images, rtol=0, atol=1e-6)


def test_a_pixel_is_the_mean_of_its_area_and_between_centres_interpolated() -> None:
    images = photos(2, 3, 48, 80)
    expected = F.avg_pool2d(images, (3, 5))
    torch.testing.assert_close(shrink(images, 16), expected, rtol=0, atol=1e-5)
    enlarged = F.interpolate(images, (96, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(shrink(images, 96), enlarged, rtol=0, atol=1e-5)
    # Two thirds of every second pixel go to either side: (a + b / 2) / 1.5, (b / 2 + c) / 1.5.
    row = torch.tensor([0.0, 3.0, 9.0]).expand(1, 1, 3, 3)
    torch.testing.assert_close(shrink(row, 2)[0, 0, 0], torch.tensor([1.0, 7.0]))


def test_response_of_a_photo_does_not_depend_on_its_batch() -> None:
    prior = load_prior()
    batch = photos(3, 3, 200, 260)
    alone = prior(batch[1:2])
    torch.testing.assert_close(prior(batch)[1:2], alone, atol=1e-5, rtol=0)


def test_shape_errors_name_what_was_given() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\)"):
        InstancePrior(TINY)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="side=100"):
        PriorConfig(side=100)
    with pytest.raises(ValueError, match="width=12"):
        PriorConfig(width=12)


def test_p_is_small_and_cheap() -> None:
    prior = load_prior()
    with FlopCounterMode(display=False) as counter:
        prior(photos(1, 3, 256, 256))
    assert counter.get_total_flops() / 2 < 0.6e9  # multiply-adds; A has 7.03e9
    assert len(shipped()[0]) < 3_000_000


def test_a_matte_of_ones_keeps_the_photo_and_one_of_zeros_edits_all_of_it() -> None:
    images = photos(3, 3, 40, 40)
    codes = torch.tensor([0, 1, 2])
    ones, zeros = torch.ones(3, 1, 40, 40), torch.zeros(3, 1, 40, 40)
    torch.testing.assert_close(apply_effects(images, ones, codes), images)
    edited = apply_effects(images, zeros, codes)
    for code, effect in enumerate(EFFECTS):
        torch.testing.assert_close(edited[code], edit(images, effect)[code])


def test_what_each_effect_does() -> None:
    images = photos(2, 3, 128, 128)
    assert bool((edit(images, "black") == 0).all())
    grey = edit(images, "colour")
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    white = torch.ones(1, 3, 128, 128)
    torch.testing.assert_close(edit(white, "colour"), white, atol=2e-4, rtol=0)
    torch.testing.assert_close(edit(white, "defocus"), white)  # no dark rim from padding
    assert float(edit(images, "defocus").std()) < 0.2 * float(images.std())


def test_effects_are_differentiable_in_the_matte() -> None:
    images = photos(3, 3, 16, 16).double()
    matte = photos(3, 1, 16, 16, seed=1).double().requires_grad_(True)
    codes = torch.tensor([2, 0, 1])
    assert torch.autograd.gradcheck(lambda m: apply_effects(images, m, codes).sum(), (matte,))


def penalty_gradient(critic: Critic, detach: bool) -> torch.Tensor:
    """Gradient, in the first layer, of a critic loss with the penalty in it."""
    real, fake = photos(4, 3, 32, 32).double(), photos(4, 3, 32, 32, seed=1).double()
    codes, mix = torch.tensor([0, 1, 2, 0]), photos(4, seed=2).double()
    penalty = gradient_penalty(critic, real, fake, codes, mix)
    loss = critic(fake, codes).mean() - critic(real, codes).mean()
    loss = loss + 10 * (penalty.detach() if detach else penalty)
    (gradient,) = torch.autograd.grad(loss, critic.convs[0].weight)
    return gradient


def test_the_gradient_penalty_reaches_the_critics_weights() -> None:
    torch.manual_seed(0)
    critic = Critic(32, 8).double()
    with_penalty, without = penalty_gradient(critic, False), penalty_gradient(critic, True)
    assert float((with_penalty - without).norm()) > 0.1 * float(without.norm())


def test_the_gradient_of_the_penalty_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    critic = Critic(32, 8).double()
    real, fake = photos(2, 3, 32, 32).double(), photos(2, 3, 32, 32, seed=1).double()
    codes, mix = torch.tensor([0, 2]), photos(2, seed=2).double()

    def penalty() -> torch.Tensor:
        return gradient_penalty(critic, real, fake, codes, mix)

    weight = critic.convs[1].weight
    (analytic,) = torch.autograd.grad(penalty(), weight)
    largest = np.unravel_index(int(analytic.abs().argmax()), analytic.shape)
    step = 1e-5
    values = []
    for change in (step, -2 * step):
        with torch.no_grad():
            weight[largest] += change
        values.append(float(penalty().detach()))
    difference = (values[0] - values[1]) / (2 * step)
    assert float(analytic[largest]) == pytest.approx(difference, rel=1e-3)


def test_shipped_weights_reload_bit_identically() -> None:
    prior, again = load_prior(), load_prior()
    x = photos(1, 3, 128, 128)
    assert torch.equal(prior(x), again(x))
    stored = load(shipped()[0])
    rewritten = save({k: v.to(torch.float16) for k, v in prior.state_dict().items()})
    assert {k: v.dtype for k, v in stored.items()} == dict.fromkeys(stored, torch.float16)
    assert all(torch.equal(load(rewritten)[k], v) for k, v in stored.items())
    assert not any(p.requires_grad for p in prior.parameters())


def test_damaged_weights_are_refused_with_a_reason() -> None:
    weights, card = shipped()
    with pytest.raises(PriorWeightsError, match="cannot be read"):
        prior_from_bytes(weights[: len(weights) // 2], card)
    with pytest.raises(PriorWeightsError, match="cannot be read"):
        prior_from_bytes(weights, "{}")
    with pytest.raises(PriorWeightsError, match=r"has shape .* needs"):
        narrower = json.dumps({"config": {"side": 96, "width": 24}})
        prior_from_bytes(weights, narrower)
    state = load(weights)
    state["head.bias"][0] = float("nan")
    with pytest.raises(PriorWeightsError, match=r"head\.bias .*not finite"):
        prior_from_bytes(save(state), card)
    del state["head.bias"]
    with pytest.raises(PriorWeightsError, match=r"first difference 'head\.bias'"):
        prior_from_bytes(save(state), card)


def test_shipped_p_finds_an_off_centre_object_on_a_noisy_background() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:240, 0:320]
    inside = (y - 90) ** 2 + (x - 210) ** 2 < 55**2
    image = 0.55 + 0.05 * rng.standard_normal((240, 320, 3))
    image[inside] = (0.75, 0.2, 0.15) + 0.05 * rng.standard_normal((int(inside.sum()), 3))
    tensor = torch.from_numpy(image.clip(0, 1)).permute(2, 0, 1)[None].float()
    found = (load_prior()(tensor)[0, 0] > 0.5).numpy()
    overlap = (found & inside).sum() / (found | inside).sum()
    assert overlap > 0.6


def test_the_universal_model_tells_where_the_object_is() -> None:
    image = np.full((90, 120, 3), 230, np.uint8)
    image[25:65, 30:80] = (40, 70, 160)
    universal = Metaformer.from_pretrained()
    response = universal.response_map(image)
    assert response.shape == (90, 120)
    assert response.min() >= 0 and response.max() <= 1
    assert response[30:60, 35:75].mean() > response[:15].mean() + 0.5
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    assert np.array_equal(response, load_prior()(tensor)[0, 0].numpy())
    deep = np.rint(image * (4095 / 255)).astype(np.uint16)  # the same photo of a 12-bit camera
    for found in (universal.response_map(deep), universal.response_map(deep, white_level=4095)):
        assert np.abs(found - response).max() < 0.01
