"""What every preset promises: the same assertions for ``feature`` and ``pixel``, plain and aligned.

Each runs with the weights inside the package, on cuts of real circuit boards at 96 pixels.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from metaformer.detection.adaptation import at_working_size, prepare
from metaformer.detection.preset import Adaptation, Preset
from metaformer.detection.presets import PRESETS, PresetName, make_preset, restore_preset
from metaformer.detection.scoring.anomaly_map import image_score
from tests.helpers import boards, trees

Kind = tuple[PresetName, bool]
KINDS: list[Kind] = [(name, aligned) for name in PRESETS for aligned in (False, True)]
COUNT = 3

every_kind = pytest.mark.parametrize(
    "kind", KINDS, ids=[f"{name}{' aligned' if aligned else ''}" for name, aligned in KINDS]
)


@cache
def preset_of(kind: Kind) -> Preset[Any]:
    name, aligned = kind
    return make_preset(
        name,
        resolution=96,
        aligned=aligned,
        backbone="efficientnet_lite0",
        backbone_weights=None,
        download=False,
        mode="fast",
        device="cpu",
        universal_weights=None,
    )


def support_of(kind: Kind, seeds: range = range(COUNT), count: int | None = None) -> list[Any]:
    images = [boards.good(seed) for seed in seeds]
    size = len(images) if count is None else count
    return [prepare(preset_of(kind), image, support_size=size) for image in images]


def adapt(kind: Kind, support: list[Any], seed: int = 0) -> Adaptation[Any]:
    return preset_of(kind).adapt(support, seed=seed, on_step=lambda done, total: None)


@cache
def adapted_to_good(kind: Kind) -> Adaptation[Any]:
    return adapt(kind, support_of(kind))


def score(maps: torch.Tensor, share: float) -> float:
    """Of an image by its maps (M, h, w): the first one scores it."""
    return image_score(maps[0], share)


def query(kind: Kind, seed: int = 50) -> Any:
    return prepare(preset_of(kind), boards.defective(seed))


@every_kind
def test_a_map_is_finite_not_negative_and_of_the_same_grid_for_all_images(kind):
    adapted = adapted_to_good(kind).adapted
    maps = [adapted.anomaly_maps(query(kind, seed)) for seed in range(50, 53)]
    assert len({grid.shape for grid in maps}) == 1
    for grid in maps:
        assert grid.ndim == 3 and len(grid) in (1, 2) and grid.dtype == torch.float32
        assert grid.isfinite().all() and (grid >= 0).all()


@every_kind
@pytest.mark.parametrize(("height", "width"), [(64, 160), (160, 64), (97, 131), (8, 8), (9, 400)])
def test_any_size_is_worked_at_in_multiples(kind, height, width):
    preset = preset_of(kind)
    sides = preset.working_size(height, width)
    assert all(side > 0 and side % preset.size_multiple == 0 for side in sides)
    image = trees.picture(0, height, width)
    assert at_working_size(preset, image).shape == (1, 3, *sides)
    grid = adapted_to_good(kind).adapted.anomaly_maps(prepare(preset, image))
    assert grid.isfinite().all()
    assert sides[0] * grid.shape[2] == sides[1] * grid.shape[1]


@every_kind
def test_a_real_defect_scores_above_good_parts(kind):
    adapted = adapted_to_good(kind).adapted
    share = adapted.config.score_share

    good, bad = (
        [
            score(adapted.anomaly_maps(prepare(preset_of(kind), make(seed))), share)
            for seed in range(100, 104)
        ]
        for make in (boards.good, boards.defective)
    )
    assert min(bad) > max(good)


@every_kind
def test_adapting_is_deterministic(kind):
    again = adapt(kind, support_of(kind))
    before = adapted_to_good(kind)
    image = query(kind)
    assert torch.equal(again.adapted.anomaly_maps(image), before.adapted.anomaly_maps(image))
    assert all(
        torch.equal(one, other) for one, other in zip(again.left_out, before.left_out, strict=True)
    )


@every_kind
def test_adapting_does_not_change_earlier_models_or_the_preset(kind):
    adapted, image = adapted_to_good(kind).adapted, query(kind)
    before = adapted.anomaly_maps(image).clone()
    other = [prepare(preset_of(kind), boards.good(3, "77000005"), support_size=1)]
    adapt(kind, other)
    assert torch.equal(adapted.anomaly_maps(image), before)
    again = prepare(preset_of(kind), boards.defective(50))
    assert torch.equal(adapted.anomaly_maps(again), before)


@every_kind
def test_each_support_image_has_a_left_out_map_and_a_lone_one_has_none(kind):
    assert len(adapted_to_good(kind).left_out) == COUNT
    assert adapt(kind, support_of(kind, range(1))).left_out == []


@every_kind
def test_a_left_out_map_does_not_see_its_own_image(kind):
    """An image like no other of the support: known to the model, unknown to that of the others."""
    strange = prepare(preset_of(kind), boards.good(9, "77000005"), support_size=COUNT + 1)
    support = [*support_of(kind, count=COUNT + 1), strange]
    done = adapt(kind, support)
    share = done.adapted.config.score_share
    known = score(done.adapted.anomaly_maps(strange), share)
    left_out = [score(maps, share) for maps in done.left_out]
    assert left_out[-1] > 1.5 * known
    assert left_out[-1] > max(left_out[:-1])
    # Of every image: unknown, it is no more normal than known.
    for image, alone in zip(support, left_out, strict=True):
        assert alone >= score(done.adapted.anomaly_maps(image), share) - 1e-6


@every_kind
def test_a_left_out_map_is_that_of_the_image_at_its_place(kind):
    other = prepare(preset_of(kind), boards.good(9, "77000005"), support_size=COUNT)
    support = support_of(kind)
    before = adapted_to_good(kind).left_out
    after = adapt(kind, [support[0], other, support[2]]).left_out
    assert not torch.allclose(after[1], before[1], rtol=0.05)


@every_kind
def test_the_module_computes_the_anomaly_map(kind):
    preset, adapted = preset_of(kind), adapted_to_good(kind).adapted
    module = adapted.as_module()
    for seed in (50, 51):
        pixels = boards.defective(seed)
        with torch.inference_mode():
            (found,) = module(at_working_size(preset, pixels))
        expected = adapted.anomaly_maps(prepare(preset, pixels))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@every_kind
def test_a_map_does_not_depend_on_the_batch(kind):
    preset, module = preset_of(kind), adapted_to_good(kind).adapted.as_module()
    pixels = [boards.defective(50), boards.good(60), boards.good(3, "77000005")]
    images = [at_working_size(preset, each) for each in pixels]
    with torch.inference_mode():
        together = module(torch.cat(images))
        apart = torch.cat([module(image) for image in images])
    # The order of sums in a matrix product depends on its size.
    torch.testing.assert_close(together, apart, rtol=2e-4, atol=2e-5)


@every_kind
def test_what_is_saved_and_read_scores_bit_for_bit_the_same(kind):
    adapted = adapted_to_good(kind).adapted
    tensors, settings = adapted.state()
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    preset, restored = restore_preset(
        kind[0],
        copies,
        json.loads(json.dumps(settings)),
        backbone_weights=None,
        backbone=None,
        device="cpu",
    )
    assert preset.config == restored.config == adapted.config
    for pixels in (boards.defective(50), boards.good(60), boards.defective(5, width=160)):
        found = restored.anomaly_maps(prepare(preset, pixels))
        assert torch.equal(found, adapted.anomaly_maps(prepare(preset_of(kind), pixels)))
    again, as_settings = restored.state()
    assert as_settings == settings and again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@every_kind
def test_extending_takes_the_new_images_in_and_leaves_the_model_alone(kind):
    adapted, image = adapted_to_good(kind).adapted, query(kind)
    before = adapted.anomaly_maps(image).clone()
    new = prepare(preset_of(kind), boards.good(9, "77000005"), support_size=COUNT + 1)
    extension = adapted.extend([new], seed=0)
    share = adapted.config.score_share
    unknown, known = (
        score(model.anomaly_maps(new), share) for model in (adapted, extension.adapted)
    )
    assert known < 0.7 * unknown
    # The map it is calibrated with is still that of a model that has not seen it.
    assert score(extension.left_out[-1], share) > 1.3 * known
    assert len(extension.left_out) == (COUNT + 1 if extension.how == "recomputed" else 1)
    assert torch.equal(adapted.anomaly_maps(image), before)


@every_kind
def test_extending_is_deterministic(kind):
    new = support_of(kind, range(10, 12), count=COUNT + 2)
    first, again = (adapted_to_good(kind).adapted.extend(new, seed=4) for _ in range(2))
    image = query(kind)
    assert first.how == again.how
    assert torch.equal(first.adapted.anomaly_maps(image), again.adapted.anomaly_maps(image))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("earlier", [1, 2, 4])
def test_a_whole_feature_support_is_extended_as_if_adapted_to_all_at_once(aligned, earlier):
    """Bit for bit, the model having been stored in between."""
    kind: Kind = ("feature", aligned)
    images = support_of(kind, range(5))
    tensors, settings = adapt(kind, images[:earlier]).adapted.state()
    _, stored = restore_preset(
        "feature", tensors, settings, backbone_weights=None, backbone=None, device="cpu"
    )
    extension = stored.extend(images[earlier:], seed=0)
    whole = adapt(kind, images)
    assert extension.how == "recomputed"
    for one, other in zip(extension.left_out, whole.left_out, strict=True):
        assert torch.equal(one, other)
    image = query(kind)
    assert torch.equal(extension.adapted.anomaly_maps(image), whole.adapted.anomaly_maps(image))
    for name, tensor in whole.adapted.state()[0].items():
        assert torch.equal(extension.adapted.state()[0][name], tensor)


@pytest.mark.parametrize("aligned", [False, True])
def test_a_whole_pixel_support_is_recomputed_on_the_autoencoder_as_it_was_fitted(aligned):
    """Bit for bit the same if the model has been stored in between."""
    kind: Kind = ("pixel", aligned)
    adapted: Any = adapted_to_good(kind).adapted
    tensors, settings = adapted.state()
    _, stored = restore_preset(
        "pixel", tensors, settings, backbone_weights=None, backbone=None, device="cpu"
    )
    new, image = support_of(kind, range(10, 12), count=COUNT + 2), query(kind)
    extensions = [model.extend(new, seed=0) for model in (adapted, stored)]
    for extension in extensions:
        assert extension.how == "recomputed" and len(extension.left_out) == COUNT + 2
    first, second = extensions
    assert torch.equal(first.adapted.anomaly_maps(image), second.adapted.anomaly_maps(image))
    for one, other in zip(first.left_out, second.left_out, strict=True):
        assert torch.equal(one, other)
    weights = first.adapted.state()[0]
    fitted = [name for name in tensors if name.startswith(("autoencoder.", "moments."))]
    assert fitted and all(torch.equal(weights[name], tensors[name]) for name in fitted)


@every_kind
def test_progress_ends_at_its_total(kind):
    steps: list[tuple[int, int]] = []
    support = support_of(kind)
    preset_of(kind).adapt(support, seed=0, on_step=lambda done, total: steps.append((done, total)))
    assert steps and steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
