"""Builders of small images and dataset folders for the tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(seed: int = 0, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """A smooth coloured image, (height, width, 3) uint8, with no symmetry and no flat part."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


# Six images for everything that reads a folder: what is good, and five ways of being bad or odd.


def write_good_png(path: Path, seed: int = 0, height: int = 40, width: int = 56) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, height, width)).save(path)
    return path


def write_truncated_png(path: Path, seed: int = 0) -> Path:
    """The first half of a good PNG."""
    write_good_png(path, seed)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def write_text_named_png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("Lot 17, camera 2: no image recorded.\n")
    return path


def write_one_pixel_png(path: Path) -> Path:
    return write_good_png(path, height=1, width=1)


def write_huge_png(path: Path, side: int = 20_000) -> Path:
    """A valid black grey PNG of side x side pixels, 8 bits, made without holding them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = bytes(side + 1)  # filter type 0, then `side` zeros
    press = zlib.compressobj(1)
    data = b"".join(press.compress(row) for _ in range(side)) + press.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", data)
        + png_chunk(b"IEND", b"")
    )
    return path


def write_grey16_png(path: Path, seed: int = 0, white_level: int = 65535) -> Path:
    """A good 16-bit grey PNG, 40 x 56, values up to ``white_level``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = picture(seed)[:, :, 0].astype(np.uint32)
    Image.fromarray((grey * white_level // grey.max()).astype(np.uint16)).save(path)
    return path


def write_bad_folder(folder: Path) -> Path:
    """All six in one folder: 1_good, 2_truncated, 3_text, 4_one_pixel, 5_huge, 6_grey16 (.png)."""
    write_good_png(folder / "1_good.png")
    write_truncated_png(folder / "2_truncated.png")
    write_text_named_png(folder / "3_text.png")
    write_one_pixel_png(folder / "4_one_pixel.png")
    write_huge_png(folder / "5_huge.png")
    write_grey16_png(folder / "6_grey16.png")
    return folder


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
