"""Five rivals that need no training: photo uint8 (H, W, 3) RGB -> map float32 (H, W) in [0, 1].

Each works at the side that suits it and enlarges its map to the photo's size.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Photo = NDArray[np.uint8]
Map = NDArray[np.float32]


def centre_prior(photo: Photo) -> Map:
    """A Gaussian in the middle, a third of each side wide. Does not look at the photo."""
    height, width = photo.shape[:2]
    y = (np.arange(height) / height - 0.5) / (1 / 3)
    x = (np.arange(width) / width - 0.5) / (1 / 3)
    return np.asarray(np.exp(-0.5 * (y[:, None] ** 2 + x[None, :] ** 2)), np.float32)


def spectral_residual(photo: Photo) -> Map:
    """What is odd in the log amplitude spectrum (Hou and Zhang 2007), at 64 pixels as they do."""
    grey = cv2.resize(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (64, 64)).astype(np.float32)
    spectrum = np.fft.fft2(grey)
    amplitude = np.log(np.abs(spectrum) + 1e-6).astype(np.float32)
    residual = amplitude - cv2.blur(amplitude, (3, 3))
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    smooth = cv2.GaussianBlur(saliency, (0, 0), 2.5).astype(np.float32)
    return _normalised(smooth, photo)


def minimum_barrier(photo: Photo, side: int = 100, passes: int = 3) -> Map:
    """Minimum barrier distance to the border (Zhang and others 2015), by raster scans.

    Without their later colour-whitening and smoothing stages; with their centre weight.
    """
    small = cv2.resize(photo, (side, side), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    total = np.zeros((side, side), np.float32)
    for channel in range(3):
        total += _barrier(lab[..., channel], passes)
    y = np.abs(np.linspace(-1, 1, side))
    weight = np.clip(1 - 0.5 * np.hypot(y[:, None], y[None, :]), 0, 1).astype(np.float32)
    return _normalised(total * weight, photo)


def _barrier(values: Map, passes: int) -> Map:
    """Smallest (maximum - minimum) of ``values`` along a path from each pixel to the border.

    Scans whole rows down and up, then whole columns right and left, so that each step is one
    numpy operation; the published scan goes pixel by pixel.
    """
    size = len(values)
    high, low = values.copy(), values.copy()
    distance = np.full((size, size), np.inf, np.float32)
    distance[0], distance[-1], distance[:, 0], distance[:, -1] = 0, 0, 0, 0
    for _ in range(2 * passes):
        for _axis in range(2):
            for order in (range(1, size), range(size - 2, -1, -1)):
                before = -1 if order.step == 1 else 1
                for row in order:
                    new_high = np.maximum(high[row + before], values[row])
                    new_low = np.minimum(low[row + before], values[row])
                    reached = np.isfinite(distance[row + before])
                    better = reached & (new_high - new_low < distance[row])
                    high[row] = np.where(better, new_high, high[row])
                    low[row] = np.where(better, new_low, low[row])
                    distance[row] = np.where(better, new_high - new_low, distance[row])
            values, high, low, distance = values.T, high.T, low.T, distance.T
    return distance


def otsu(photo: Photo) -> Map:
    """Otsu's threshold on grey values; the class that fills less of the border is the object."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    _, mask = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return np.asarray(1 - mask if border.mean() > 0.5 else mask, np.float32)


def grabcut_border(photo: Photo, margin: float = 0.05, rounds: int = 4) -> Map:
    """GrabCut that takes a margin of 5 % all around for certain background."""
    height, width = photo.shape[:2]
    top, left = max(1, round(margin * height)), max(1, round(margin * width))
    mask = np.zeros((height, width), np.uint8)
    rectangle = (left, top, width - 2 * left, height - 2 * top)
    cv2.setRNGSeed(0)
    bgr = np.ascontiguousarray(photo[..., ::-1])
    cv2.grabCut(
        bgr, mask, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_RECT
    )
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)


def _normalised(saliency: Map, photo: Photo) -> Map:
    """To [0, 1] and to the photo's size."""
    saliency = saliency - saliency.min()
    saliency = saliency / max(float(saliency.max()), 1e-6)
    height, width = photo.shape[:2]
    return np.asarray(cv2.resize(saliency, (width, height)), np.float32)


RIVALS: dict[str, Callable[[Photo], Map]] = {
    "centre prior": centre_prior,
    "spectral residual": spectral_residual,
    "minimum barrier distance": minimum_barrier,
    "Otsu": otsu,
    "GrabCut from the border": grabcut_border,
}
