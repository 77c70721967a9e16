"""Image files in many kinds, and ways to damage them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIDE = 64
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Values at which counts, offsets and sizes go wrong."""
HEADER_BYTES = 128


def sound_files(photo: Image.Image) -> dict[str, bytes]:
    """A photo, made small, as files of every kind that is read; the key ends in the format."""
    rgb = photo.convert("RGB").resize((SIDE, SIDE))
    pixels = np.asarray(rgb)
    wide = pixels.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "rgb.png": encode(rgb, "PNG"),
        "palette.png": encode(rgb.quantize(64), "PNG"),
        "alpha.png": encode(rgb.convert("RGBA"), "PNG"),
        "grey16.png": opencv(".png", wide[:, :, 0]),
        "rgb16.png": opencv(".png", wide),
        "baseline.jpeg": encode(rgb, "JPEG", quality=90),
        "progressive.jpeg": encode(rgb, "JPEG", progressive=True),
        "cmyk.jpeg": encode(rgb.convert("CMYK"), "JPEG"),
        "turned.jpeg": encode(rgb, "JPEG", exif=exif),
        "rgb.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(rgb.quantize(64), "BMP"),
        "plain.tiff": encode(rgb, "TIFF"),
        "lzw.tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tiff": encode(rgb, "TIFF", compression="jpeg"),
        "fax.tiff": encode(rgb.convert("1"), "TIFF", compression="group4"),
        "float.tiff": encode(Image.fromarray(pixels[:, :, 0].astype(np.float32) / 255), "TIFF"),
        "rgb16.tiff": opencv(".tiff", wide),
        "lossy.webp": encode(rgb, "WEBP"),
        "lossless.webp": encode(rgb, "WEBP", lossless=True),
        "moving.webp": encode(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
    }


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def opencv(suffix: str, pixels: Any) -> bytes:
    return bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def mutated_files(
    sound: dict[str, bytes], count: int, rng: np.random.Generator
) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged files with names that say what was done, the kinds in turn."""
    names = list(sound)
    for number in range(count):
        name = names[number % len(names)]
        mutate = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        data = bytearray(sound[name])
        mutate(data, rng)
        if name.endswith(".png") and rng.random() < 0.7:
            repair_checksums(data)  # otherwise most damage to a PNG is noticed at once
        yield f"{number:04d}-{mutate.__name__}-{name}", bytes(data)


def flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 30))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, 64))
    data[start : start + length] = rng.bytes(length)


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def edit_header(data: bytearray, rng: np.random.Generator) -> None:
    """One to three whole numbers near the start become extreme ones."""
    for _ in range(int(rng.integers(1, 4))):
        size, order = int(rng.choice([1, 2, 4])), str(rng.choice(["big", "little"]))
        start = int(rng.integers(2, min(len(data), HEADER_BYTES)))
        value = int(rng.choice(EXTREMES)) % 256**size
        data[start : start + size] = value.to_bytes(size, "big" if order == "big" else "little")


def edit_trailer(data: bytearray, rng: np.random.Generator) -> None:
    """The same near the end, where the directory of a TIFF is."""
    tail = data[-HEADER_BYTES * 2 :]
    edit_header(tail, rng)
    data[-len(tail) :] = tail


def cut_out(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, 200))]


def repeat_piece(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    piece = data[start : start + int(rng.integers(1, 200))]
    where = int(rng.integers(len(data)))
    data[where:where] = piece * int(rng.integers(1, 20))


MUTATIONS = (flip_bits, overwrite, truncate, edit_header, edit_trailer, cut_out, repeat_piece)


def repair_checksums(data: bytearray) -> None:
    """Make the checksums of a PNG's chunks fit again, as far as the chunks can be followed."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
