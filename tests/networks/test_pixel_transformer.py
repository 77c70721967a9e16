"""T starts without a say, sees the support, and can be differentiated twice."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metaformer.networks.pixel_transformer import (
    GapTransformer,
    GapTransformerConfig,
    Response,
    ResponseBias,
    grid_positions,
)

CONFIG = GapTransformerConfig(channels=5, cues=3, fine=2, cell=4, width=8, heads=2, layers=1)


class Inputs(NamedTuple):
    tokens: Tensor
    cues: Tensor
    places: Tensor
    support: Tensor
    support_places: Tensor
    response: Tensor
    support_response: Tensor


def inputs(count: int = 2, seed: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    places = grid_positions(3, 4)
    return Inputs(
        torch.randn(count, 12, 5, generator=g),
        torch.randn(count, 12, 3, generator=g),
        places,
        torch.randn(24, 5, generator=g),
        places.repeat(2, 1),
        torch.rand(count, 12, generator=g),
        torch.rand(24, generator=g),
    )


def transformer(config: GapTransformerConfig = CONFIG, *, trained: bool = False) -> GapTransformer:
    torch.manual_seed(0)
    model = GapTransformer(config)
    if trained:  # away from the start, where half of the network is silent
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("logits", [1, 100, 2**19])
def test_attention_in_blocks_is_attention(monkeypatch, logits):
    """Without gradients queries are read some at a time, which changes nothing but the time."""
    model, given_ = transformer(trained=True), inputs()
    whole = model(*given_)
    monkeypatch.setattr("metaformer.networks.pixel_transformer.BLOCK_LOGITS", logits)
    with torch.inference_mode():
        blocks = model(*given_)
    for name in ("correction", "gate", "residual", "rebuilt"):
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_it_starts_without_a_say_whatever_the_response(seed: int) -> None:
    out = transformer()(*inputs(seed=seed))
    assert not out.correction.any()
    assert not out.residual.any()
    assert (out.gate == 1).all()


def test_shapes() -> None:
    out = transformer()(*inputs(3))
    assert out.correction.shape == (3, 12, 2 * 2)
    assert out.gate.shape == (3, 12)
    assert out.residual.shape == (3, 12, 3 * 4 * 4)
    assert out.rebuilt.shape == (3, 12, 5)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch() -> None:
    model, many = transformer(trained=True), inputs(4)
    one = many._replace(tokens=many.tokens[:1], cues=many.cues[:1], response=many.response[:1])
    among, alone = model(*many), model(*one)
    for name in ("correction", "gate", "residual", "rebuilt"):
        first = getattr(among, name)[:1]
        torch.testing.assert_close(first, getattr(alone, name), rtol=0, atol=1e-5)


@torch.no_grad()
def test_order_of_the_support_does_not_count() -> None:
    model, x = transformer(trained=True), inputs()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    other = x._replace(
        support=x.support[order],
        support_places=x.support_places[order],
        support_response=x.support_response[order],
    )
    one, two = model(*x).correction, model(*other).correction
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_is_rebuilt_is_a_mean_of_support_tokens() -> None:
    x = inputs()
    rebuilt = transformer(trained=True)(*x).rebuilt
    assert (rebuilt <= x.support.amax(0) + 1e-5).all()
    assert (rebuilt >= x.support.amin(0) - 1e-5).all()
    same = x._replace(support=x.support[:1].repeat(24, 1))
    torch.testing.assert_close(
        transformer(trained=True)(*same).rebuilt, x.support[:1].expand(2, 12, 5)
    )


@torch.no_grad()
def test_keys_without_response_lose_weight_and_more_so_with_strength() -> None:
    tokens = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    attention = transformer().normal
    response = torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    shares = []
    for raw in (-4.0, 0.0, 3.0):
        attention.bias.raw_strength.fill_(raw)
        shares.append(float(attention(tokens, tokens, response)[1][..., 3:].sum(-1).mean()))
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 1e-3


@given(raw=st.floats(-50, 50))
def test_the_bias_is_never_an_advantage_of_the_background(raw: float) -> None:
    bias = ResponseBias(1)
    nn.init.constant_(bias.raw_strength, raw)
    low, high = bias(torch.tensor([[0.1, 0.9]])).detach().flatten()
    assert low <= high


@torch.no_grad()
def test_gate_closes_softly_and_stays_in_range() -> None:
    x = inputs()
    for openness, expected in ((2.0, 1.0), (0.25, 0.25), (-1.0, 0.0)):
        model = transformer()
        model.openness.fill_(openness)
        gate = expected + (1 - expected) * x.response
        torch.testing.assert_close(model(*x).gate, gate)


def test_gate_can_come_back_from_either_end() -> None:
    for openness in (2.0, -1.0):
        model = transformer()
        nn.init.constant_(model.openness, openness)
        model(*inputs()).gate.sum().backward()
        assert model.openness.grad is not None
        assert model.openness.grad.abs() > 0


@torch.no_grad()
def test_without_support_attention_the_support_does_not_count() -> None:
    x, other = inputs(), inputs(seed=1)
    changed = x._replace(support=other.support, support_response=other.support_response)
    blind = transformer(replace(CONFIG, support_attention=False), trained=True)
    assert torch.equal(blind(*x).correction, blind(*changed).correction)
    full = transformer(trained=True)
    assert not torch.equal(full(*x).correction, full(*changed).correction)


@pytest.mark.parametrize("response", ["none", "gate", "bias", "both"])
@torch.no_grad()
def test_the_response_does_what_its_variant_says(response: Response) -> None:
    x, other = inputs(), inputs(seed=1)
    model = transformer(replace(CONFIG, response=response), trained=True)
    model.openness.fill_(0.5)
    one = model(*x)
    two = model(*x._replace(response=other.response, support_response=other.support_response))
    assert torch.equal(one.gate, two.gate) == (response in ("none", "bias"))
    assert torch.equal(one.correction, two.correction) == (response in ("none", "gate"))
    assert torch.equal(one.rebuilt, two.rebuilt) == (response in ("none", "gate"))


@torch.no_grad()
def test_no_response_is_a_response_of_one() -> None:
    x, model = inputs(), transformer(trained=True)
    model.openness.fill_(0.5)
    without = model(*x[:5])
    ones = model(*x[:5], torch.ones_like(x.response), torch.ones_like(x.support_response))
    assert (without.gate == 1).all()
    torch.testing.assert_close(ones.gate, without.gate)
    torch.testing.assert_close(ones.correction, without.correction, rtol=0, atol=1e-5)


def test_second_derivative_is_right() -> None:
    model = transformer(trained=True).double()
    x = Inputs(*(tensor.double() for tensor in inputs(1)))
    part = x._replace(
        tokens=x.tokens[:, :3],
        cues=x.cues[:, :3],
        places=x.places[:3],
        response=x.response[:, :3],
    )

    def corrected(tokens: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        out = model(*part._replace(tokens=tokens, cues=cues))
        return out.correction, out.residual.sum(-1)

    arguments = (part.tokens.clone().requires_grad_(), part.cues.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(corrected, arguments)


@pytest.mark.parametrize("telling", ["token", "cue"])
def test_it_learns_what_a_token_and_a_cue_tell(telling: str) -> None:
    torch.manual_seed(0)
    model = transformer(replace(CONFIG, width=16))
    x = inputs(8)
    source = x.tokens if telling == "token" else x.cues
    labels = (source[..., :1] > 0).float().expand(-1, -1, 4)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(model(*x).correction, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_shapes_that_do_not_fit_are_named() -> None:
    x = inputs()
    with pytest.raises(ValueError, match=r"cues of shape \(2, 12, 3\), got \(2, 5, 3\)"):
        transformer()(*x._replace(cues=x.cues[:, :5]))
    with pytest.raises(ValueError, match=r"tokens \(B, N, 5\)"):
        transformer()(*x._replace(tokens=x.tokens[..., :4]))
    with pytest.raises(ValueError, match=r"support tokens \(M, 5\), got \(0, 5\)"):
        transformer()(*x._replace(support=x.support[:0]))
    with pytest.raises(ValueError, match="multiples of the number of heads"):
        GapTransformerConfig(channels=5, width=9, heads=2)
    with pytest.raises(ValueError, match="accepted are 'none', 'gate', 'bias' and 'both'"):
        GapTransformerConfig(channels=5, response="hard")  # type: ignore[arg-type]
