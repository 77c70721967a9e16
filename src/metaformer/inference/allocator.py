"""Keep freed memory in the process, which PyTorch on a CPU is much faster with.

glibc gives freed blocks of some megabytes back to the system and asks for them again a moment
later, and the system clears each page anew: for the feature maps of EfficientNet-Lite0 at 256
pixels that was a fifth of the time of one image, on a virtual machine, where new pages are dear.
"""

from __future__ import annotations

import ctypes
import sys

LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest block that is used again; more than any feature map of one image at 256
pixels. Larger ones, as of photos of 11 megapixels, still go back at once: kept, they would take a
third of a gigabyte more with photos of 48."""
KEPT = 128 * 2**20
"""Bytes of free memory at the end of the heap that are kept."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of ``mallopt(3)``."""


def keep_freed_memory() -> bool:
    """Let this process reuse the memory that it frees; whether that could be set (glibc only).

    The ``metaformer`` command does so by itself. It is a setting of the whole process, so a program
    that uses the library decides for itself: call it once, before the first image.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, as musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
