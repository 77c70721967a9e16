"""Metrics against scikit-learn, against a plain AUPRO written here, and against their own rules."""

from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from metaformer.evaluation import metrics
from metaformer.evaluation.metrics import (
    IMAGE_METRICS,
    PIXEL_METRICS,
    PixelMetrics,
    bootstrap_auroc,
    image_metrics,
    image_undefined_reason,
)

Maps = list[tuple[NDArray[np.float32], NDArray[np.bool_]]]


def plain_aupro(images: Maps, limit: float = 0.3) -> float:
    """AUPRO from its definition: every threshold, every region, one at a time."""
    every_pixel = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    normal = np.concatenate([anomaly_map[~mask] for anomaly_map, mask in images])
    regions = []
    for anomaly_map, mask in images:
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [anomaly_map[labels == i + 1] for i in range(found)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(every_pixel)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((float(np.mean(normal >= threshold)), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def exact(images: Maps) -> dict[str, float]:
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    labels = np.concatenate([mask.ravel() for _, mask in images])
    precision, recall, _ = precision_recall_curve(labels, scores)
    both = precision + recall
    return {
        "pixel_auroc": float(roc_auc_score(labels, scores)),
        "pixel_ap": float(average_precision_score(labels, scores)),
        "pixel_f1max": float((2 * precision * recall / np.where(both > 0, both, 1)).max()),
        "aupro": plain_aupro(images),
    }


def compute(images: Maps) -> dict[str, float]:
    pixels = PixelMetrics()
    for anomaly_map, mask in images:
        pixels.add(anomaly_map, mask)
    result = pixels.compute()
    return {name: value for name, value in result.items() if value is not None}


def smooth_maps(seed: int, count: int = 4, size: int = 48, strength: float = 0.15) -> Maps:
    """Blurred noise in [0, 1] with somewhat brighter defects, a few of which touch."""
    rng = np.random.default_rng(seed)
    images: Maps = []
    for i in range(count):
        noise = cv2.GaussianBlur(rng.random((size, size)).astype(np.float32), (0, 0), 2)
        noise = (noise - noise.min()) / np.ptp(noise)
        mask = np.zeros((size, size), dtype=bool)
        for _ in range(i):  # the first image is normal
            y, x = rng.integers(0, size - 4, 2)
            h, w = rng.integers(1, 12, 2)
            mask[y : y + h, x : x + w] = True
        images.append(((noise * (1 - strength) + strength * mask).astype(np.float32), mask))
    return images


# ------------------------------------------------------------------------------------- images


def test_image_metrics_by_hand() -> None:
    result = image_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    assert result["image_auroc"] == pytest.approx(0.75)
    assert result["image_ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert result["image_f1max"] == pytest.approx(0.8)


def test_constant_scores_say_nothing_but_are_defined() -> None:
    result = image_metrics([0, 0, 0, 1], [2.0] * 4)
    assert result == {
        "image_auroc": 0.5,
        "image_ap": pytest.approx(0.25),
        "image_f1max": pytest.approx(0.4),
    }


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([], "no test image"), ([1, 1], "no normal"), ([0, 0], "no defective")],
)
def test_missing_class_gives_none_and_a_reason(labels: list[int], reason: str) -> None:
    assert image_metrics(labels, [0.5] * len(labels)) == dict.fromkeys(IMAGE_METRICS)
    assert reason in str(image_undefined_reason(labels))
    assert image_undefined_reason([0, 1]) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_score_that_is_no_number_is_refused_by_index(bad: float) -> None:
    with pytest.raises(ValueError, match="index 2"):
        image_metrics([0, 1, 1], [0.1, 0.2, bad])


def test_wrong_labels_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="index 1 is neither 0 nor 1"):
        image_metrics([0, 2, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one length"):
        image_metrics([0, 1], [0.1, 0.2, 0.3])


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
def test_image_metrics_ignore_scale_and_order(pairs: list[tuple[bool, int]]) -> None:
    labels = [label for label, _ in pairs]
    scores = np.array([score for _, score in pairs], dtype=float)
    first = image_metrics(labels, scores)
    assert image_metrics(labels[::-1], np.exp(scores[::-1])) == pytest.approx(first)
    for value in first.values():
        assert value is None or 0 <= value <= 1


def test_bootstrap_is_seeded_centred_and_narrows_with_more_images() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (20, 500):
        labels = np.repeat([0, 1], count)
        scores = np.stack([rng.normal(labels), rng.normal(labels)])
        drawn = bootstrap_auroc(labels, scores, resamples=300, seed=1)
        assert drawn.shape == (2, 300)
        assert np.array_equal(drawn, bootstrap_auroc(labels, scores, resamples=300, seed=1))
        for row, values in zip(scores, drawn, strict=True):
            assert values.mean() == pytest.approx(roc_auc_score(labels, row), abs=0.02)
        low, high = np.percentile(drawn[0], [2.5, 97.5])
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_bootstrap_counts_ties_as_half() -> None:
    drawn = bootstrap_auroc([0, 1, 0, 1], [[1.0, 1.0, 1.0, 1.0]], resamples=20)
    assert np.all(drawn == 0.5)
    # The same images in every row: rows with equal scores get equal resamples.
    drawn = bootstrap_auroc([0, 1, 0, 1], [[1, 2, 3, 4], [1, 2, 3, 4]], resamples=20)
    assert np.array_equal(drawn[0], drawn[1])
    assert np.ptp(drawn[0]) > 0


# ------------------------------------------------------------------------------------- pixels


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    low=st.floats(-50, 50),
    span=st.sampled_from([1e-4, 0.01, 0.4, 1.0, 30.0]),
    power=st.sampled_from([1, 2, 6]),
)
def test_pixel_metrics_equal_exact_ones(seed: int, low: float, span: float, power: int) -> None:
    images = [
        ((low + span * anomaly_map**power).astype(np.float32), mask)
        for anomaly_map, mask in smooth_maps(seed, count=3, size=20)
    ]
    # One pair of pixels falsely tied costs 5e-6 in maps this small.
    assert compute(images) == pytest.approx(exact(images), abs=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.7), (0.999, 1.0), (-2.0, 5.0)])
def test_pixel_metrics_of_larger_maps_keep_their_precision(low: float, high: float) -> None:
    images = [
        ((low + (high - low) * anomaly_map).astype(np.float32), mask)
        for anomaly_map, mask in smooth_maps(3, count=4, size=256, strength=0.05)
    ]
    images[0][0][0, 0] = 0.0  # one far pixel must not cost the others their resolution
    wanted = exact([(m[::4, ::4], k[::4, ::4]) for m, k in images])
    got = compute([(m[::4, ::4], k[::4, ::4]) for m, k in images])
    assert got == pytest.approx(wanted, abs=1e-6)
    scores = np.concatenate([m.ravel() for m, _ in images])
    labels = np.concatenate([k.ravel() for _, k in images])
    got = compute(images)
    assert got["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert got["pixel_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


def test_bins_stay_bounded_and_fine_enough_over_every_magnitude(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Maps spread evenly over 60 powers of two, with the memory cut to a 64th."""
    monkeypatch.setattr(metrics, "MAX_BINS", 2**15)
    images = [
        ((np.exp2(60 * anomaly_map - 40)).astype(np.float32), mask)
        for anomaly_map, mask in smooth_maps(5, size=64)
    ]
    pixels = PixelMetrics()
    for anomaly_map, mask in images:
        pixels.add(anomaly_map, mask)
    assert pixels._bits < 6  # else bins were never merged and this shows nothing
    assert len(pixels._cells) << pixels._bits <= 2**15
    assert pixels.compute() == pytest.approx(exact(images), abs=1e-4)
    backwards = compute(images[::-1])
    assert backwards == pytest.approx(pixels.compute(), abs=1e-12)


def test_ties_are_ties() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4, 2:6] = True
    flat = np.zeros((8, 8), dtype=np.float32)
    flat[0, 0] = -0.0  # equal to 0.0, another bit pattern
    result = compute([(flat, mask)])
    assert result["pixel_auroc"] == pytest.approx(0.5)
    assert result["pixel_ap"] == pytest.approx(8 / 64)
    assert result["pixel_f1max"] == pytest.approx(2 * 8 / (64 + 8))
    assert result["aupro"] == pytest.approx(0.15)  # the diagonal: mean overlap up to 0.3


def test_perfect_and_inverted_maps() -> None:
    images = [(mask.astype(np.float32), mask) for _, mask in smooth_maps(1)]
    assert compute(images) == dict.fromkeys(PIXEL_METRICS, 1.0)
    inverted = compute([(-anomaly_map, mask) for anomaly_map, mask in images])
    assert inverted["pixel_auroc"] == 0
    assert inverted["aupro"] == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(1, 5))
def test_metrics_never_leave_the_unit_range(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    images: Maps = [
        (rng.integers(0, levels, (6, 7)).astype(np.float32), rng.random((6, 7)) < 0.3)
        for _ in range(3)
    ]
    for value in compute(images).values():
        assert 0 <= value <= 1


def test_small_regions_weigh_as_much_as_large_ones_and_corners_connect() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[0:10, 0:10] = True
    mask[15, 15] = mask[16, 16] = True  # one region: they touch at a corner
    anomaly_map = np.zeros((20, 20), dtype=np.float32)
    anomaly_map[15, 15] = anomaly_map[16, 16] = 1
    pixels = PixelMetrics()
    pixels.add(anomaly_map, mask)
    assert pixels.regions == 2
    # Small region found at once, large one only with everything else: 1/2 + the diagonal's share.
    assert pixels.compute()["aupro"] == pytest.approx(0.5 + 0.5 * 0.15)


def test_undefined_pixel_metrics_say_why() -> None:
    pixels = PixelMetrics()
    assert pixels.undefined_reason() == "no test image with a known mask"
    assert pixels.compute() == dict.fromkeys(PIXEL_METRICS)
    pixels.add(np.zeros((3, 3), np.float32), np.zeros((3, 3), bool))
    assert pixels.undefined_reason() == "no defect mask"
    assert pixels.compute() == dict.fromkeys(PIXEL_METRICS)
    whole = PixelMetrics()
    whole.add(np.zeros((3, 3), np.float32), np.ones((3, 3), bool))
    assert whole.undefined_reason() == "no normal pixel"
    assert whole.compute() == dict.fromkeys(PIXEL_METRICS)


def test_bad_maps_are_refused_and_leave_the_counts_alone() -> None:
    pixels = PixelMetrics()
    mask = np.zeros((3, 4), dtype=bool)
    mask[1, 2] = True
    pixels.add(mask.astype(np.float32), mask)
    before = pixels.compute()
    for value in (np.nan, np.inf, 1e300):
        bad = np.zeros((3, 4))
        bad[2, 1] = value
        with pytest.raises(ValueError, match=r"image 1 .* row 2, column 1"):
            pixels.add(bad, mask)
    with pytest.raises(ValueError, match="one shape"):
        pixels.add(np.zeros((4, 3), np.float32), mask)
    with pytest.raises(ValueError, match="must be bool"):
        pixels.add(np.zeros((3, 4), np.float32), mask.astype(np.uint8) * 255)  # type: ignore[arg-type]
    assert pixels.compute() == before


def process_seconds(maps: int, size: int) -> float:
    """Processor time to count so many maps of ``size`` squared: other work does not lengthen it."""
    images = smooth_maps(0, count=2, size=size)
    pixels = PixelMetrics()
    start = time.process_time()
    for i in range(maps):
        pixels.add(*images[i % len(images)])
    pixels.compute()
    return time.process_time() - start


def test_full_resolution_takes_seconds_not_minutes() -> None:
    """10 images of 1024 x 1024 in far less than the 1.2 s that a 500-image minute would allow."""
    assert process_seconds(10, 1024) < 1.2


@pytest.mark.slow
def test_500_images_at_full_resolution_take_seconds_and_no_more_memory_than_20() -> None:
    tracemalloc.start()
    try:
        process_seconds(20, 1024)
        few = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        seconds = process_seconds(500, 1024)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * few
    finally:
        tracemalloc.stop()
    assert seconds < 60  # measured: 20
