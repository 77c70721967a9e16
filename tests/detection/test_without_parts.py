"""A part that is left out changes what it should and nothing else; one that is missing is named."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from metaformer.cli.options import PartName
from metaformer.detection.adaptation import prepare
from metaformer.detection.feature.config import ALIGNED, FeatureConfig
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.pixel import finetuning
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.preset import PARTS, Adapted, Preset
from metaformer.detection.presets import PresetName, restore_preset
from tests.helpers import boards

HAS = {
    "feature": ("transformer", "gap"),
    "pixel": ("adaptation",),
    "pixel gap": ("gap", "adaptation"),
    "pixel long": PARTS,
}


@cache
def whole(kind: str) -> Preset[Any]:
    if kind == "feature":
        return FeaturePreset.of(FeatureConfig(resolution=96))
    mode: Any = "long" if kind == "pixel long" else "fast"
    config = PixelConfig(resolution=96, mode=mode, gap=kind == "pixel gap", long_steps=1)
    return PixelPreset.from_pretrained(config)


@cache
def adapted_without(kind: str, *parts: str) -> Adapted[Any]:
    preset = whole(kind).without(parts)
    support = [prepare(preset, boards.good(seed), support_size=2) for seed in range(2)]
    with pytest.MonkeyPatch.context() as patched:  # the long mode would take minutes
        patched.setattr(finetuning, "STEPS", 2)
        patched.setattr(finetuning, "CHECK_EVERY", 2)
        return preset.adapt(support, seed=0, on_step=lambda done, total: None).adapted


def maps_without(kind: str, *parts: str) -> torch.Tensor:
    image = prepare(whole(kind).without(parts), boards.defective(50))
    return adapted_without(kind, *parts).anomaly_maps(image)


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in HAS for part in HAS[kind]])
def test_a_part_left_out_shows_in_the_map_and_stays_left_out_in_a_file(kind, part):
    found = maps_without(kind, part)
    assert found.isfinite().all() and (found >= 0).all()
    assert found.shape != maps_without(kind).shape or not torch.equal(found, maps_without(kind))
    tensors, settings = adapted_without(kind, part).state()
    name: PresetName = "feature" if kind == "feature" else "pixel"
    preset, again = restore_preset(
        name, tensors, settings, backbone_weights=None, backbone=None, device="cpu"
    )
    assert torch.equal(again.anomaly_maps(prepare(preset, boards.defective(50))), found)


def test_the_score_is_the_geometric_mean_of_the_maximum_with_and_without_the_transformer():
    full, no_gap, core = (maps_without("feature", *parts) for parts in ((), ("gap",), TRANSFORMER))
    assert len(full) == len(no_gap) == 2 and len(core) == 1
    ratio = full[0, ::2, ::2] / core[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio.mean())))
    expected = (core[0].max() * full[1].max()).sqrt()
    torch.testing.assert_close(full[0].max(), expected)
    assert not torch.equal(full[1], no_gap[1])


TRANSFORMER = ("transformer",)


def test_without_adaptation_the_weights_are_those_of_the_universal_model():
    for kind in ("pixel", "pixel long"):
        before: Any = whole(kind)
        fitted: Any = adapted_without(kind, "adaptation")
        other: Any = adapted_without(kind)
        weights = before.universal.state_dict()
        assert all(torch.equal(v, weights[n]) for n, v in fitted.universal.state_dict().items())
        assert any(not torch.equal(v, weights[n]) for n, v in other.universal.state_dict().items())


def test_without_its_response_or_gap_the_transformer_reads_neither():
    preset: Any = whole("pixel long")
    image = boards.good(3)
    assert float(prepare(preset, image).response.min()) < 0.99
    assert torch.all(prepare(preset.without(["response"]), image).response == 1)
    for parts, is_zero in (((), False), (("gap",), True)):
        model: Any = adapted_without("pixel long", *parts)
        gap = model.encode(prepare(preset.without(parts), image)).gap[:, 6:10]
        assert bool((gap.abs() < 1e-3).all()) is is_zero


def test_a_part_that_a_preset_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"response: the feature preset .* transformer and gap\."):
        whole("feature").without(["transformer", "response"])
    with pytest.raises(ValueError, match=r"the fast mode of the pixel preset .* adaptation\."):
        whole("pixel").without(["transformer"])
    with pytest.raises(ValueError, match="transformer, response, gap and adaptation"):
        whole("pixel long").without(["decoder"])
    aligned = FeaturePreset.of(FeatureConfig(resolution=96, aligned=True, **ALIGNED))
    with pytest.raises(ValueError, match="left out: none"):
        aligned.without(["transformer"])


def test_the_command_takes_every_part():
    assert tuple(part.value for part in PartName) == PARTS
