"""The number of threads is of the whole process: a training leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch


@contextmanager
def restored_threads() -> Iterator[None]:
    """PyTorch and OpenCV have as many threads afterwards as before; also a decorator.

    Sums in another order differ in their last bit, so a training that left its own number behind
    would change the scores of a detector that is used after it.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
