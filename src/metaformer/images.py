"""``from metaformer.images import read_image``: where earlier versions had it."""

from metaformer.io.images import ImageError, read_image

__all__ = ["ImageError", "read_image"]
