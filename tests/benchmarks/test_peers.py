"""The peers' harness: AnomalyDINO's matching, the tables, and anomalib where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not in the package

from benchmarks.accuracy.baselines.feature_cache import Remembering
from benchmarks.accuracy.peers.anomaly_dino import AnomalyDino
from benchmarks.accuracy.report import UNIFIED, comparison, one_for_all
from benchmarks.speed import peers as speed
from metaformer.networks.efficientnet import EfficientNetLite0

Image = NDArray[np.uint8]


def product(seed: int, angle: float = 0) -> Image:
    """A bar on a textured ground, 96 x 96, turned by ``angle`` degrees."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (96, 96, 3), dtype=np.uint8)
    cv2.rectangle(image, (16, 38), (80, 58), (190, 60, 40), -1)
    turn = cv2.getRotationMatrix2D((48, 48), angle, 1.0)
    image = cv2.warpAffine(image, turn, (96, 96), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(image, dtype=np.uint8)


def damaged(seed: int) -> Image:
    image = product(seed)
    cv2.circle(image, (30, 48), 7, (20, 220, 230), -1)
    return image


def test_the_defect_scores_above_the_normal_and_is_found() -> None:
    fitted = AnomalyDino(resolution=96, rotations=4).fit([product(0)], seed=0)
    (normal, normal_map), (score, anomaly_map) = fitted.score([product(1), damaged(1)])
    assert score > 1.5 * normal
    assert normal_map.shape == anomaly_map.shape == (96, 96)
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    assert abs(row - 48) < 20 and abs(column - 30) < 20


def test_turned_supports_make_turned_products_normal() -> None:
    turned = product(1, angle=90)
    upright = AnomalyDino(resolution=96, rotations=1).fit([product(0)], seed=0)
    agnostic = AnomalyDino(resolution=96, rotations=4).fit([product(0)], seed=0)
    assert agnostic.score([turned])[0][0] < 0.8 * upright.score([turned])[0][0]
    assert len(agnostic.memory) == 4 * len(upright.memory)


def result(preset: str, image_auroc: float, pixel_auroc: float | None = None) -> dict[str, Any]:
    metrics = {"image_auroc": image_auroc, "pixel_auroc": pixel_auroc}
    mean = {**dict.fromkeys(("pixel_ap", "aupro")), **metrics}
    return {"data": "d", "shots": 4, "preset": preset, "mean": mean}


def test_ours_stands_beside_the_best_peer_of_each_metric() -> None:
    rows = [result("feature", 0.9, 0.8), result("a", 0.95, 0.7), result("b", 0.7, 0.75)]
    last = comparison([*rows, result("nearest-patch", 0.88)]).splitlines()[-1]
    assert "90.0 / 88.0 / 95.0 a" in last and "80.0 / – / 75.0 b" in last
    assert last.endswith("| – | – |")
    assert comparison(rows[1:]).count("| d |") == 0  # nothing to compare with


def test_one_detector_for_all_stands_beside_one_for_each() -> None:
    common = {"seeds": [0, 1], "test_limit": 9}
    own = result("feature", 0.9) | common | {"category": "d"}
    other_seeds = own | {"seeds": [0]}
    joint = result("feature", 0.8) | common | {"data": UNIFIED, "categories": {"d": own}}
    joint["categories"] = {"d": result("feature", 0.85)}
    assert one_for_all([own, other_seeds]) == ""
    rows = [
        line for line in one_for_all([own, other_seeds, joint]).splitlines() if "feature" in line
    ]
    assert rows == ["| feature | 4 | d | – | 85.0 / 90.0 | – | – | – |"]


def test_features_are_computed_once_an_image_and_the_oldest_are_forgotten() -> None:
    network = EfficientNetLite0(deepest=16).eval()
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    calls.clear()
    remembering = Remembering(network, budget=2**20, finest=8)
    for batch in (images, images[1:], images.flip(0)):
        features = remembering(batch)
    assert len(calls) == 3 and set(features) == {8, 16}
    assert torch.allclose(features[16].flip(0), expected[16], atol=1e-5)
    assert features[16].shape[1:] == expected[16].shape[1:]
    small = Remembering(network, budget=1)
    for _ in range(2):
        small(images[:2])
    assert len(calls) == 3 + 4 and len(small.kept) == 1


def test_anomalibs_blur_in_two_passes_is_its_blur() -> None:
    pytest.importorskip("anomalib")
    from anomalib.models.components import GaussianBlur2d

    from benchmarks.accuracy.peers.anomalib_methods import SeparableBlur

    blur = GaussianBlur2d(kernel_size=(33, 33), sigma=(4.0, 4.0), channels=1)
    maps = torch.rand(2, 1, 64, 80, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(SeparableBlur(blur)(maps), blur(maps), atol=1e-6)


def test_ratios_pair_each_round_and_each_engine_with_its_own() -> None:
    def run(value: float) -> dict[str, float | None]:
        return {**dict.fromkeys(speed.FIGURES, value), "adapt_seconds": None}

    runs = {
        "metaformer": [run(1), run(4)],
        "anomalib-patchcore": [run(2), run(4)],
        "metaformer-openvino": [run(1), run(1)],
        "anomalib-patchcore-openvino": [run(10), run(10)],
    }
    ratios = speed.ratios(runs)
    assert set(ratios) == {
        "metaformer / anomalib-patchcore",
        "metaformer-openvino / anomalib-patchcore-openvino",
    }
    assert ratios["metaformer / anomalib-patchcore"]["seconds_at_1"] == 0.75
    assert ratios["metaformer / anomalib-patchcore"]["adapt_seconds"] is None


def test_anomalib_computes_our_features_and_keeps_fits_apart() -> None:
    pytest.importorskip("anomalib")
    from benchmarks.accuracy.peers.anomalib_methods import AnomalibPadim, AnomalibPatchCore

    # Building either refuses features other than ours.
    for method in (AnomalibPatchCore(), AnomalibPatchCore(coreset=1.0), AnomalibPadim()):
        first = method.fit([product(0), product(1)], seed=0)
        before = first.score([damaged(2)])[0][0]
        method.fit([damaged(2), damaged(3)], seed=1)
        again, normal = first.score([damaged(2), product(2)])
        assert again[0] == pytest.approx(before, rel=1e-4)
        assert again[0] > normal[0] and again[1].shape == (96, 96)
    single = AnomalibPadim().fit([product(0)], seed=0).score([product(1), damaged(1)])
    assert np.isfinite(single[0][0]) and single[1][0] > single[0][0]
