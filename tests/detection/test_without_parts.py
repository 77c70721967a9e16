"""A part that is left out changes what it should and nothing else; one that is missing is named."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from metaformer.cli.shared.options import PartName
from metaformer.detection.adaptation import prepare
from metaformer.detection.feature.config import ALIGNED, FeatureConfig
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.pixel import finetuning
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.preset import PARTS, Adapted, Preset
from metaformer.detection.presets import PresetName, restore_preset
from metaformer.networks.feature_maps import GAP, RESPONSE
from tests.helpers import boards

HAS = {"feature": ("transformer", "gap"), "pixel": PARTS, "pixel long": PARTS}


@cache
def whole(kind: str) -> Preset[Any]:
    if kind == "feature":
        return FeaturePreset.of(FeatureConfig(resolution=96))
    mode: Any = "long" if kind == "pixel long" else "fast"
    config = PixelConfig(resolution=96, mode=mode, long_steps=1, transformer=True)
    preset = PixelPreset.from_pretrained(config)
    preset.network = copy.deepcopy(preset.network)
    torch.manual_seed(0)
    nn.init.normal_(preset.network.out.weight, std=0.3)  # it says something, whatever is shipped
    return preset


@cache
def adapted_without(kind: str, *parts: str) -> Adapted[Any]:
    preset = whole(kind).without(parts)
    support = [prepare(preset, boards.good(seed), support_size=2) for seed in range(2)]
    with pytest.MonkeyPatch.context() as patched:  # the long mode would take minutes
        patched.setattr(finetuning, "STEPS", 2)
        patched.setattr(finetuning, "CHECK_EVERY", 2)
        patched.setattr(finetuning, "CHECK_QUERIES", 2)
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


@pytest.mark.parametrize("kind", ["feature", "pixel"])
def test_the_score_is_the_geometric_mean_of_the_maximum_with_and_without_the_transformer(kind):
    full, no_gap, core = (maps_without(kind, *parts) for parts in ((), ("gap",), ("transformer",)))
    assert len(full) == len(no_gap) == 2 and len(core) == 1
    ratio = full[0, ::2, ::2] / core[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio.mean())))
    expected = (core[0].max() * full[1].max()).sqrt()
    torch.testing.assert_close(full[0].max(), expected)
    assert not torch.equal(full[1], no_gap[1])


@pytest.mark.parametrize("kind", ["pixel", "pixel long"])
def test_without_adaptation_the_weights_are_those_of_the_universal_model(kind):
    before: Any = whole(kind)
    still: Any = adapted_without(kind, "adaptation")
    fitted: Any = adapted_without(kind)
    weights = before.autoencoder.state_dict()
    of_still, of_fitted = (x.backbone.autoencoder.state_dict() for x in (still, fitted))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in of_still.items())
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in of_fitted.items())
    network = before.network.state_dict()
    of_correction = still.model.correction.network.state_dict()
    assert all(torch.equal(tensor, network[name]) for name, tensor in of_correction.items())


def test_without_its_response_or_gap_the_transformer_reads_neither():
    image = boards.good(3)
    for parts in ((), ("response",), ("gap",), ("transformer",)):
        preset, model = whole("pixel").without(parts), adapted_without("pixel", *parts)
        features = model.encode(prepare(preset, image)).features  # type: ignore[attr-defined]
        assert (RESPONSE in features) is (parts in ((), ("gap",)))
        assert (GAP in features) is (parts != ("transformer",))
        if parts == ("transformer",):
            continue
        module: Any = model.as_module()
        other = features | {GAP: features[GAP] + torch.rand_like(features[GAP])}
        same = torch.equal(module.maps(other), module.maps(features))
        assert same is (parts == ("gap",))


def test_a_part_that_a_preset_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"response: the feature preset .* transformer and gap\."):
        whole("feature").without(["transformer", "response"])
    has = "transformer, response, gap and adaptation"
    with pytest.raises(ValueError, match=rf"the fast mode of the pixel preset .* {has}\."):
        whole("pixel").without(["decoder"])
    with pytest.raises(ValueError, match=rf"the long mode of the pixel preset .* {has}\."):
        whole("pixel long").without(["decoder"])
    # What the transformer reads is no part of a model without it.
    with pytest.raises(ValueError, match=r"without gap: .* leave out: adaptation\."):
        whole("pixel").without(["transformer"]).without(["gap"])
    by_place = PixelPreset.from_pretrained(PixelConfig(resolution=96, aligned=True))
    with pytest.raises(ValueError, match=r"the aligned mode of .* leave out: adaptation\."):
        by_place.without(["transformer"])
    aligned = FeaturePreset.of(FeatureConfig(resolution=96, aligned=True, **ALIGNED))
    with pytest.raises(ValueError, match="leave out: none"):
        aligned.without(["transformer"])


def test_the_command_takes_every_part():
    assert tuple(part.value for part in PartName) == PARTS
