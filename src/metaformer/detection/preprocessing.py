"""From checked images to tensors at the size a network works at, and maps back again."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_ASPECT = 8.0
"""Beyond this ratio of sides an image is squeezed along its longer side, to bound the cost."""


def working_size(height: int, width: int, resolution: float, multiple: int) -> tuple[int, int]:
    """Sides (H, W) near ``resolution``^2 pixels in area, aspect kept, each a multiple.

    Area rather than the shorter side is fixed, so that every image costs the same.
    """
    aspect = min(max(height / width, 1 / MAX_ASPECT), MAX_ASPECT)
    wanted_height = resolution * aspect**0.5
    wanted_width = resolution / aspect**0.5
    return (
        max(1, round(wanted_height / multiple)) * multiple,
        max(1, round(wanted_width / multiple)) * multiple,
    )


def to_tensor(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, *size) float32 in [0, 1]."""
    height, width = size
    if height * width < image.shape[0] * image.shape[1]:
        resized = shrunk(image, size)
    else:
        resized = np.asarray(
            cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8
        )
    # NumPy uses one thread; PyTorch's others would go on spinning while an engine computes.
    pixels = resized.astype(np.float32)
    pixels /= 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def shrunk(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) -> (*size, 3), means of areas. PyTorch's threads share the rows where both heights
    can be divided; OpenCV would use one thread."""
    height, width = size
    common = math.gcd(height, image.shape[0])
    if image.shape[0] < height or image.shape[1] < width:  # a side grows: rows are no means of rows
        common = 1
    strips = max(n for n in range(1, torch.get_num_threads() + 1) if common % n == 0)
    result = np.empty((height, width, 3), np.uint8)

    def shrink_strip(of: NDArray[np.uint8], to: NDArray[np.uint8]) -> None:
        cv2.resize(of, (width, len(to)), dst=to, interpolation=cv2.INTER_AREA)

    if strips == 1:
        shrink_strip(image, result)
        return result
    given, made = np.split(image, strips), np.split(result, strips)
    try:
        others = helpers(strips - 1).map(shrink_strip, given[1:], made[1:])
    except RuntimeError:  # the interpreter is about to end and takes no more work
        shrink_strip(image, result)
        return result
    shrink_strip(given[0], made[0])
    list(others)  # waits, and raises what went wrong there
    return result


@lru_cache(maxsize=1)
def helpers(count: int) -> ThreadPoolExecutor:
    """Threads that stay: to start one takes as long as its strip of a small image."""
    return ThreadPoolExecutor(count, thread_name_prefix="shrink")


if hasattr(os, "register_at_fork"):  # a process forked from this one has none of them
    os.register_at_fork(after_in_child=helpers.cache_clear)
