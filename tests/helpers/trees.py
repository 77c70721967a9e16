"""Builders of small images and dataset folders for the tests."""

from __future__ import annotations

import itertools
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


# Data sets, one builder a layout. Images of one product differ by noise; defects are a square of
# another colour, marked in the mask.

SHAPE = (24, 32)


def product(seed: int) -> NDArray[np.uint8]:
    """One good specimen, (24, 32, 3) uint8."""
    base = picture(100, *SHAPE).astype(np.int16)
    noise = np.random.default_rng(seed).integers(-6, 7, base.shape)
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def defective_product(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One defective specimen, and where its defect is, (24, 32) bool."""
    image = product(seed)
    top, left = np.random.default_rng(seed).integers(2, 14, 2)
    mask = np.zeros(SHAPE, bool)
    mask[top : top + 8, left : left + 8] = True
    image[mask] = 255 - image[mask]
    return image, mask


def save(path: Path, pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_good(folder: Path, count: int, suffix: str = ".png", seed: int = 0) -> None:
    for i in range(count):
        save(folder / f"{i:03d}{suffix}", product(seed + i))


def save_defective(
    folder: Path, masks: Path | None, count: int, mask_name: str = "{}_mask.png", seed: int = 500
) -> None:
    for i in range(count):
        image, mask = defective_product(seed + i)
        save(folder / f"{i:03d}.png", image)
        if masks is not None:
            save(masks / mask_name.format(f"{i:03d}"), mask * np.uint8(255))


def write_mvtec(
    folder: Path,
    *,
    train: int = 6,
    good: int = 3,
    kinds: tuple[str, ...] = ("dent", "scratch"),
    per_kind: int = 2,
    masks: bool = True,
) -> Path:
    save_good(folder / "train" / "good", train)
    save_good(folder / "test" / "good", good, seed=200)
    for i, kind in enumerate(kinds):
        truth = folder / "ground_truth" / kind if masks else None
        save_defective(folder / "test" / kind, truth, per_kind, seed=500 + 50 * i)
    return folder


def write_loco(folder: Path) -> Path:
    save_good(folder / "train" / "good", 5)
    save_good(folder / "validation" / "good", 2, seed=100)
    save_good(folder / "test" / "good", 2, seed=200)
    for kind in ("logical_anomalies", "structural_anomalies"):
        save_defective(
            folder / "test" / kind, folder / "ground_truth" / kind, 2, mask_name="{}/000.png"
        )
        _, other = defective_product(900)
        save(folder / "ground_truth" / kind / "001" / "001.png", other * np.uint8(255))
    return folder


def write_btad(folder: Path) -> Path:
    save_good(folder / "train" / "ok", 5, suffix=".bmp")
    save_good(folder / "test" / "ok", 2, suffix=".bmp", seed=200)
    save_defective(folder / "test" / "ko", folder / "ground_truth" / "ko", 3, mask_name="{}.png")
    return folder


def write_pairs(folder: Path, *, defective: int = 3, good: int = 1) -> Path:
    """Template and test have the same name; the good test images have no mask."""
    save_good(folder / "template", defective + good)
    save_defective(folder / "test", folder / "boxes", defective)
    for i in range(defective, defective + good):
        save(folder / "test" / f"{i:03d}.png", product(200 + i))
    return folder


def write_visa(root: Path, *, names: tuple[str, ...] = ("candle", "pcb1"), split: bool) -> Path:
    """VisA as published; with ``split``, its list of train and test images too."""
    rows = ["object,split,label,image,mask"]
    for name in names:
        images = root / name / "Data" / "Images"
        save_good(images / "Normal", 10)
        truth = root / name / "Data" / "Masks" / "Anomaly"
        save_defective(images / "Anomaly", truth, 2, mask_name="{}.png")
        for i in range(10):
            part = "test" if i in (3, 7) else "train"
            rows.append(f"{name},{part},normal,{name}/Data/Images/Normal/{i:03d}.png,")
        for i in range(2):
            where = f"{name}/Data/{{}}/Anomaly/{i:03d}.png"
            rows.append(f"{name},test,anomaly,{where.format('Images')},{where.format('Masks')}")
    if split:
        (root / "split_csv").mkdir()
        (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def write_kolektorsdd(folder: Path, items: int = 5, parts: int = 3) -> Path:
    """Part 0 of the odd items is defective."""
    for item in range(1, items + 1):
        for part in range(parts):
            image, mask = product(item * 10 + part), np.zeros(SHAPE, bool)
            if part == 0 and item % 2:
                image, mask = defective_product(item)
            stem = folder / f"kos{item:02d}" / f"Part{part}"
            save(stem.with_suffix(".jpg"), image)
            save(stem.with_name(f"{stem.name}_label.bmp"), mask * np.uint8(255))
    return folder


def write_kolektorsdd2(folder: Path) -> Path:
    """Numbers 0 and 1 are defective, in train and in test; and the stray copy of the original."""
    for part, count in (("train", 6), ("test", 4)):
        for i in range(count):
            image, mask = defective_product(i) if i < 2 else (product(i), np.zeros(SHAPE, bool))
            save(folder / part / f"{10000 + i}.png", image)
            save(folder / part / f"{10000 + i}_GT.png", mask * np.uint8(255))
    save(folder / "train" / "10001 (copy).png", product(1))
    save(folder / "train" / "10001_GT (copy).png", np.zeros(SHAPE, np.uint8))
    return folder


def write_magnetic_tile(folder: Path) -> Path:
    for kind, count in (("Free", 10), ("Blowhole", 2), ("Crack", 1)):
        for i in range(count):
            image, mask = defective_product(i) if kind != "Free" else (product(i), np.zeros(SHAPE))
            stem = folder / f"MT_{kind}" / "Imgs" / f"exp1_num_{i}"
            save(stem.with_suffix(".jpg"), image)
            save(stem.with_suffix(".png"), mask.astype(np.uint8) * np.uint8(255))
    return folder


def write_good_bad(folder: Path, good: str = "good", bad: str = "bad") -> Path:
    save_good(folder / good, 10)
    save_defective(folder / bad, folder / "masks", 3)
    return folder


def textures(root: Path, seed: int = 0) -> Path:
    """Photos of eight kinds of surfaces to make episodes of. Two kinds are held out, and photos
    of a kind differ in light: novelty needs both."""
    rng = np.random.default_rng(seed)
    kinds = ("Wood", "Rock", "Sand", "Brick", "Wool", "Metal", "Gravel", "Bark")
    for kind, photo in itertools.product(kinds, range(3)):
        path = root / "texture" / kind / f"{photo}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        light = 80 + 40 * photo + rng.integers(-15, 15, 3)
        grain = (light + rng.integers(-50, 50, (40, 40, 3))).astype(np.uint8)
        Image.fromarray(grain).resize((320, 320)).save(path)
    return root
