from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from metaformer.networks.gap_transformer import (
    BOUND,
    BOUND_WHERE_SURE,
    GapTransformer,
    GapTransformerConfig,
    bounded,
    corrected,
    enlarged,
)
from metaformer.networks.support_description import SupportDescription, describe_support

CHANNELS = {8: 12, 16: 20}
CONFIG = GapTransformerConfig(CHANNELS, distances=3, width=32, heads=4, fine_width=16)
Query = tuple[dict[int, Tensor], Tensor, Tensor]


def features(count: int, seed: int, side: int = 8) -> dict[int, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {
        s: torch.randn(count, c, side * 8 // s, side * 8 // s, generator=made)
        for s, c in CHANNELS.items()
    }


def queries(count: int, seed: int = 1) -> Query:
    made = torch.Generator().manual_seed(seed)
    distances = torch.rand(count, 3, 8, 8, generator=made)
    return features(count, seed), distances, torch.rand(count, 1, 8, 8, generator=made) + 0.1


def support(shots: int = 3) -> SupportDescription:
    known = features(shots, 0)
    made = torch.Generator().manual_seed(7)
    alone = [torch.rand(3, 8, 8, generator=made) for _ in range(shots)]
    cores = [torch.rand(1, 8, 8, generator=made) + 0.1 for _ in range(shots)]
    return describe_support(
        [{s: x[i] for s, x in known.items()} for i in range(shots)], alone, cores
    )


def trained(seed: int = 0, *, size: float = 1.0) -> GapTransformer:
    """T with a last layer that says something."""
    torch.manual_seed(seed)
    transformer = GapTransformer(CONFIG).eval()
    nn.init.normal_(transformer.out.weight, std=size)
    return transformer.requires_grad_(False)


def test_before_training_the_map_is_the_cores() -> None:
    torch.manual_seed(0)
    transformer = GapTransformer(CONFIG).eval()
    maps, distances, core = queries(2)
    with torch.no_grad():
        correction = transformer(maps, distances, core, support())
    assert correction.shape == (2, 1, 16, 16)
    assert torch.count_nonzero(correction) == 0
    unchanged = (enlarged((core + 1e-3).log())).exp()
    torch.testing.assert_close(corrected(core, correction), unchanged)


@pytest.mark.parametrize("shots", [1, 3])
def test_an_image_is_corrected_alike_in_any_batch(shots: int) -> None:
    transformer = trained()
    maps, distances, core = queries(4)
    together = transformer(maps, distances, core, support(shots))
    alone = [
        transformer(
            {s: x[i : i + 1] for s, x in maps.items()},
            distances[i : i + 1],
            core[i : i + 1],
            support(shots),
        )
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert together.std() > 0.05


def test_the_same_twice_to_the_bit() -> None:
    transformer = trained()
    maps, distances, core = queries(2)
    first, second = (transformer(maps, distances, core, support()) for _ in range(2))
    assert torch.equal(first, second)


def test_training_sees_less_of_the_appearance_and_use_sees_all() -> None:
    transformer = trained()
    maps, distances, core = queries(2)
    in_use = transformer(maps, distances, core, support())
    transformer.train()
    torch.manual_seed(0)
    first = transformer(maps, distances, core, support())
    second = transformer(maps, distances, core, support())
    assert not torch.equal(first, second)
    assert not torch.equal(first, in_use)


def test_what_nobody_has_seen_cannot_be_explained_away() -> None:
    """Far above the support's loudest the map is lowered by little, however much T asks for."""
    transformer = trained(size=50.0)
    maps, distances, core = queries(8)
    known = support()
    above = math.exp(float(known.loudest)) * 20
    quiet = transformer(maps, distances, core, known)
    loud = transformer(maps, distances, torch.full_like(core, above), known)
    assert quiet.min() < -1.5
    assert loud.min() < -0.3  # T does ask for less
    assert loud.min() >= -BOUND_WHERE_SURE - 1e-5
    assert quiet.abs().max() <= BOUND


def test_the_bound_gives_way_between_the_two_levels() -> None:
    raw = torch.full((5,), -100.0)
    log_core = torch.linspace(-2, 2, 5)
    lowest = bounded(raw, log_core, torch.zeros(()))
    assert (lowest.diff() >= 0).all()
    assert lowest[0] == pytest.approx(-BOUND, abs=1e-3)
    assert lowest[-1] == pytest.approx(-BOUND_WHERE_SURE, abs=1e-2)
    assert bounded(-raw, log_core, torch.zeros(())).tolist() == pytest.approx([BOUND] * 5)


def test_attention_turns_away_from_where_the_response_is_low() -> None:
    """The value of a token without response reaches the others less, the stronger the bias."""
    transformer = trained()
    attention = transformer.attention
    tokens = torch.randn(1, 4, CONFIG.width, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 0] += 3.0
    response = torch.tensor([[0.0, 1.0, 1.0, 1.0]])

    def influence(strength: float, response: Tensor | None) -> float:
        attention.raw_strength.fill_(strength)
        change = attention(other, response) - attention(tokens, response)
        return float(change[0, 1:].norm())

    assert influence(-30.0, response) == pytest.approx(influence(0.0, None), rel=1e-4)
    assert influence(2.0, response) < 0.1 * influence(-30.0, response)


def test_no_response_is_no_bias_and_a_response_is_an_input() -> None:
    transformer = trained()
    maps, distances, core = queries(1)
    without = transformer(maps, distances, core, support())
    zero = transformer(maps, distances, core, support(), torch.zeros(1, 1, 64, 64))
    half = transformer(maps, distances, core, support(), torch.full((1, 1, 64, 64), 0.5))
    assert not torch.allclose(half, without)
    # The same response everywhere favours no key, and 0 is what the input is without one.
    torch.testing.assert_close(zero, without, atol=1e-5, rtol=1e-5)


def test_gaps_of_the_image_count_only_where_they_are_read() -> None:
    torch.manual_seed(0)
    transformer = GapTransformer(replace(CONFIG, distances=1, gaps=2)).eval()
    nn.init.normal_(transformer.out.weight)
    transformer.requires_grad_(False)
    maps, distances, core = queries(2)
    changed = distances.clone()
    changed[:, 1:] = changed[:, 1:].flip(3) + 0.3  # the last two are the gaps
    reading = [transformer(maps, given, core, support()) for given in (distances, changed)]
    assert not torch.allclose(reading[0], reading[1], atol=1e-2)
    transformer.reads_gap = False
    blind = [transformer(maps, given, core, support()) for given in (distances, changed)]
    assert torch.equal(blind[0], blind[1])
    assert not torch.allclose(blind[0], reading[0], atol=1e-2)
    farther = distances + torch.tensor([0.5, 0.0, 0.0])[:, None, None]
    seen = transformer(maps, farther * (1 + core), core, support())
    assert not torch.allclose(seen, blind[0], atol=1e-2), "distances are read all the same"


def test_the_image_that_fits_best_can_win_alone() -> None:
    rebuild = trained().rebuild["8"]
    made = torch.Generator().manual_seed(0)
    near = torch.randn(5, 12, generator=made)
    keys = torch.stack([near, near + 0.8])
    query = near[None] + 0.1
    rebuild.raw_sharpness.fill_(0.1)
    errors = []
    for trust in (-30.0, 300.0):
        rebuild.raw_trust.fill_(trust)
        rebuilt = rebuild(query, keys)
        only_first = rebuild(query, keys[:1])
        errors.append(float((rebuilt - only_first).norm()))
    assert errors[1] < 1e-3 < errors[0]


def test_a_support_says_how_large_its_own_distances_are() -> None:
    known = features(2, 0)
    images = [{s: x[i] for s, x in known.items()} for i in range(2)]
    alone = [torch.full((3, 8, 8), value) for value in (0.1, 0.4)]
    cores = [torch.full((1, 8, 8), value) for value in (0.2, 0.2)]
    cores[1][0, 3, 3] = 0.9
    described = describe_support(images, alone, cores)
    expected = (math.log(0.101) + math.log(0.401)) / 2
    assert described.log_mean[:3].tolist() == pytest.approx([expected] * 3, abs=1e-4)
    assert float(described.loudest) == pytest.approx((math.log(0.201) + math.log(0.901)) / 2)
    assert described.keys[8].shape == (2, 64, 12)
    again = describe_support(images, alone, cores)
    assert torch.equal(described.keys[16], again.keys[16])


def test_many_support_images_cost_no_more_than_the_keys_allow() -> None:
    known = features(20, 0)
    images = [{s: x[i] for s, x in known.items()} for i in range(20)]
    described = describe_support(images, [torch.rand(3, 8, 8)] * 20, [torch.rand(1, 8, 8)] * 20)
    assert described.keys[8].shape[:2].numel() <= 256
    assert described.keys[16].shape[:2].numel() <= 256


class ForExport(nn.Module):
    """Tensors in, tensor out, with the support inside, as an exported detector has it."""

    def __init__(self, transformer: GapTransformer, known: SupportDescription) -> None:
        super().__init__()
        self.transformer, self.known = transformer, known

    def forward(self, fine: Tensor, coarse: Tensor, distances: Tensor, core: Tensor) -> Tensor:
        maps: Mapping[int, Tensor] = {8: fine, 16: coarse}
        return corrected(core, self.transformer(maps, distances, core, self.known))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shots", [1, 3])
def test_onnx_says_the_same(tmp_path, shots: int) -> None:
    module = ForExport(trained(), support(shots)).eval()
    maps, distances, core = queries(2)
    inputs = (maps[8], maps[16], distances, core)
    path = tmp_path / "t.onnx"
    names = ["fine", "coarse", "distances", "core"]
    torch.onnx.export(module, inputs, str(path), input_names=names, dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(str(path))
    fed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    (found,) = session.run(None, fed)
    np.testing.assert_allclose(found, module(*inputs).numpy(), atol=1e-5, rtol=1e-5)


def test_a_gradient_reaches_every_weight_that_matters() -> None:
    transformer = trained().requires_grad_(True).train()
    maps, distances, core = queries(2)
    response = torch.rand(2, 1, 8, 8)
    transformer(maps, distances, core, support(), response).square().mean().backward()
    without = [
        name
        for name, p in transformer.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or p.grad.abs().max() == 0
    ]
    assert without == []


def test_a_description_moves_to_a_device_whole() -> None:
    moved = support().to(torch.device("meta"))
    assert moved.keys[8].is_meta
    assert moved.mean[16].is_meta
    assert moved.loudest.is_meta
