"""How well scores and anomaly maps find what they should: AUROC, AP, F1-max, AUPRO.

A metric whose ingredients are missing (one class only, no masks) is ``None``, never NaN and never
a made-up 0.5; ``image_undefined_reason`` and ``PixelMetrics.undefined_reason`` say why.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
METRICS = IMAGE_METRICS + PIXEL_METRICS

AUPRO_FPR_LIMIT = 0.3
"""Bergmann et al. (MVTec AD, 2021) integrate the per-region overlap up to this share of false
positives and divide by it."""

MAX_BINS = 2**21
"""Histogram bins of ``PixelMetrics``: three arrays of this length are 50 MB."""

Metrics = dict[str, float | None]


# ------------------------------------------------------------------------------------- images


def image_undefined_reason(labels: ArrayLike) -> str | None:
    """Why the image metrics of these labels are ``None``; None when they are defined."""
    anomalous = np.asarray(labels).astype(bool)
    if anomalous.size == 0:
        return "no test image"
    if anomalous.all():
        return "no normal test image"
    if not anomalous.any():
        return "no defective test image"
    return None


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> Metrics:
    """Metrics of one score per image.

    Args:
        labels: (N,), True or 1 for a defective image.
        scores: (N,), higher is more anomalous; any range. Ties are counted as ties.

    Returns:
        ``image_auroc``, ``image_ap`` (average precision, step-wise as scikit-learn) and
        ``image_f1max`` (best F1 over all thresholds), each in [0, 1]. All are None when there is
        only one class or no image: see ``image_undefined_reason``.

    Raises:
        ValueError: the shapes differ, a label is not 0 or 1, or a score is NaN or infinite.
    """
    label_array, score_array = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label_array.ndim != 1 or label_array.shape != score_array.shape:
        raise ValueError(
            f"labels and scores must be two lists of one length, "
            f"got shapes {label_array.shape} and {score_array.shape}."
        )
    wrong = np.flatnonzero((label_array != 0) & (label_array != 1))
    if wrong.size:
        raise ValueError(f"label {label_array[wrong[0]]} at index {wrong[0]} is neither 0 nor 1.")
    infinite = np.flatnonzero(~np.isfinite(score_array))
    if infinite.size:
        raise ValueError(
            f"score at index {infinite[0]} is {score_array[infinite[0]]} "
            f"({infinite.size} such in all); scores must be finite."
        )
    if image_undefined_reason(label_array) is not None:
        return dict.fromkeys(IMAGE_METRICS)
    anomalous = label_array.astype(bool)
    precision, recall, _ = precision_recall_curve(anomalous, score_array)
    # Where both are 0 so is F1: no true positive.
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    return {
        "image_auroc": float(roc_auc_score(anomalous, score_array)),
        "image_ap": float(average_precision_score(anomalous, score_array)),
        "image_f1max": float(f1.max()),
    }


def bootstrap_auroc(
    labels: ArrayLike, scores: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Image AUROC of resampled test sets, for confidence intervals.

    Normal and defective images are drawn with replacement within their class, so that no resample
    lacks a class. Every row of ``scores`` meets the same resamples.

    Args:
        labels: (N,), True for a defective image; both classes present.
        scores: (S, N), one row per run (support seed).

    Returns:
        (S, resamples), in [0, 1].
    """
    anomalous = np.asarray(labels).astype(bool)
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))  # (S, N)
    positives, negatives = np.flatnonzero(anomalous), np.flatnonzero(~anomalous)
    rng = np.random.default_rng(seed)
    # Ranks with ties sharing one: each image's place among the distinct scores of its row.
    ranks = [np.unique(row, return_inverse=True)[1] for row in rows]
    result = np.empty((len(rows), resamples))
    for b in range(resamples):
        drawn_positives = rng.choice(positives, len(positives))
        drawn_negatives = rng.choice(negatives, len(negatives))
        for s, rank in enumerate(ranks):
            places = int(rank.max()) + 1
            hits = np.bincount(rank[drawn_positives], minlength=places)
            normal = np.bincount(rank[drawn_negatives], minlength=places)
            # A pair counts 1 where the defective image ranks higher, 1/2 where they tie.
            wins = hits @ (np.cumsum(normal) - normal / 2)
            result[s, b] = wins / (len(positives) * len(negatives))
    return result


# ------------------------------------------------------------------------------------- pixels


class PixelMetrics:
    """Pixel metrics over a whole test set, at full resolution, in one pass and bounded memory.

    Every metric here depends only on how pixels rank, so pixels are not kept but counted in fine
    bins: normal pixels, defective pixels, and defective pixels weighted by 1 / (area of their
    region), which sums to the regions' mean overlap. A bin is a run of neighbouring float32
    numbers. The upper 16 bits of a number (sign, exponent, 7 bits of mantissa) choose a *cell*,
    which gets room only once a pixel falls in it; the bins are shared out among the cells in use,
    at best one for each float32 (then the result is exact), at worst 32 a cell. So a map that
    lives in [0.999, 1] is resolved as finely as one in [0, 1]. Two pixels in one bin are a tie.

    A normal image is added with an empty mask. A defective image without a mask is not added: its
    defective pixels would be counted as normal ones.
    """

    def __init__(self) -> None:
        self.images = 0
        self.regions = 0
        """8-connected regions of all masks so far."""
        self._cells: list[int] = []  # cells in use, in order of arrival: a cell's place is its slot
        self._slot = np.full(2**16, -1, dtype=np.int64)  # cell -> slot, -1: not in use
        self._bits = 16  # every slot has 2^bits bins
        # Rows: normal pixels, defective pixels, region shares. Column: slot * 2^bits + bin.
        self._counts = np.zeros((3, MAX_BINS))

    def add(self, anomaly_map: NDArray[np.floating], mask: NDArray[np.bool_]) -> None:
        """Count one image.

        Args:
            anomaly_map: (H, W), higher is more anomalous, any range; compared as float32.
            mask: (H, W) bool, True on defective pixels.

        Raises:
            ValueError: the shapes differ, the mask is not bool, or a value is NaN or infinite.
        """
        if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape:
            raise ValueError(
                f"anomaly map and mask must be two (H, W) arrays of one shape, "
                f"got {anomaly_map.shape} and {mask.shape}."
            )
        if mask.dtype != np.bool_:
            raise ValueError(f"mask must be bool (True on defective pixels), got {mask.dtype}.")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, refused below
            values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
        if not np.isfinite(values).all():
            y, x = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(
                f"anomaly map of image {self.images} is {values[y, x]} at row {y}, column {x}; "
                f"maps must be finite."
            )
        index = self._bin(values)  # (H, W)
        normal = index.ravel()
        if mask.any():
            defective, normal = index[mask], index[~mask]
            found, region = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
            region = region[mask]
            share = 1 / np.bincount(region, minlength=found)[region]
            np.add.at(self._counts[1], defective, 1.0)
            np.add.at(self._counts[2], defective, share)
            self.regions += found - 1  # label 0 is the background
        # An image has far fewer pixels than there are bins: only theirs are touched.
        np.add.at(self._counts[0], normal, 1.0)
        self.images += 1

    def _bin(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """The bin of each value, making room for new cells first."""
        # + 0.0 turns -0.0 into 0.0. Then the bit pattern of a float32 orders like the number once
        # negative numbers have all bits flipped and the others the sign bit.
        bits = (values + np.float32(0)).view(np.uint32)
        keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        cells = keys >> 16
        slots = self._slot[cells]
        if slots.min(initial=0) < 0:
            new = np.unique(cells[slots < 0])
            self._slot[new] = len(self._cells) + np.arange(len(new))
            self._cells.extend(new.tolist())
            while len(self._cells) << self._bits > MAX_BINS:
                halves = self._counts[:, ::2] + self._counts[:, 1::2]
                self._counts[:, : MAX_BINS // 2] = halves
                self._counts[:, MAX_BINS // 2 :] = 0
                self._bits -= 1
            slots = self._slot[cells]
        fine = (keys & np.uint32(0xFFFF)) >> np.uint32(16 - self._bits)
        index: NDArray[np.int64] = (slots << self._bits) | fine
        return index

    def undefined_reason(self) -> str | None:
        """Why ``compute`` gives ``None``; None when the metrics are defined."""
        if self.images == 0:
            return "no test image with a known mask"
        normal, defective = self._counts[:2].sum(axis=1)
        if defective == 0:
            return "no defect mask"
        return "no normal pixel" if normal == 0 else None

    def compute(self) -> Metrics:
        """Metrics of all images so far, each in [0, 1].

        Returns:
            ``pixel_auroc``; ``pixel_ap`` (step-wise, as scikit-learn); ``pixel_f1max``; ``aupro``:
            mean overlap of regions against the false positive rate of all normal pixels, by
            trapezoids up to a rate of 0.3, divided by 0.3 (Bergmann et al. 2021). All are None
            without a defective or without a normal pixel: see ``undefined_reason``.
        """
        if self.undefined_reason() is not None:
            return dict.fromkeys(PIXEL_METRICS)
        slots = len(self._cells)
        counts = self._counts[:, : slots << self._bits].reshape(3, slots, 1 << self._bits)
        counts = counts[:, np.argsort(self._cells)].reshape(3, -1)[:, ::-1]  # highest bin first
        counts = counts[:, (counts[0] + counts[1]) > 0]  # (3, thresholds)
        curve = np.zeros((3, counts.shape[1] + 1))  # from no pixel flagged to all of them
        np.cumsum(counts, axis=1, out=curve[:, 1:])
        del counts
        false_positives, true_positives, covered = curve
        defective = true_positives[-1]
        false_positive_rate = false_positives / false_positives[-1]
        recall = true_positives / defective
        precision = true_positives[1:] / (false_positives[1:] + true_positives[1:])
        f1 = 2 * true_positives / (false_positives + true_positives + defective)
        return {
            "pixel_auroc": float(auc(false_positive_rate, recall)),
            "pixel_ap": float(np.diff(recall) @ precision),
            "pixel_f1max": float(f1.max()),
            "aupro": _area_up_to(AUPRO_FPR_LIMIT, false_positive_rate, covered / covered[-1]),
        }


def _area_up_to(limit: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Area under the curve (x rising from 0 to 1) left of ``limit``, divided by ``limit``."""
    inside = x <= limit
    x_inside = np.append(x[inside], limit)
    y_inside = np.append(y[inside], np.interp(limit, x, y))
    # Rounding alone can lift a perfect 1 above 1.
    return min(1.0, float(auc(x_inside, y_inside)) / limit)
