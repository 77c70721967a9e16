"""Unlabelled photos to build meta-tasks from, kept in memory as encoded bytes.

A pool is read once and split by whole kinds of things, so that nothing seen in training is met
again in validation. No label is used beyond the folder a photo lies in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from metaformer.io.folders import list_folders, list_images
from metaformer.io.images import ImageError, read_image, resize_image

Split = Literal["train", "validation"]
Domain = Literal["material", "goods", "things"]
"""material: a photo is a surface, any patch of it is one. goods: photos of one kind show the same
goods. things: every photo shows another thing."""

DOMAINS: dict[str, Domain] = {
    "texture": "material",
    "grocery": "goods",
    "coin": "goods",
    "clothing": "things",
}
"""What the photos of a folder are, by its name; any other folder holds things."""

VALIDATION_SHARE = 0.2
"""Share of the families of a folder that is held out."""
STORED_SIDE = 320
"""Photos with a longer side are shrunk to this before they are kept."""
ALIKE: dict[Domain, float] = {"material": 1.2, "goods": 2.0, "things": 0.0}
"""Largest ``appearance`` distance of photos of one kind that may pass for one product. Chosen by
eye on sheets of neighbours."""
REGULAR = 0.3
"""Height of the second peak of a surface's autocorrelation from which on it counts as regular
(bricks, tiles, weaves) rather than random (gravel, rust). Chosen by eye."""
SEAMLESS = 1.8
"""A surface can be continued at its far edge when the step across the edge is at most this times
the mean step between neighbouring pixels."""


@dataclass(frozen=True)
class Photo:
    """One photo. ``alike`` are the pool's indices of photos of the same kind that look alike."""

    name: str
    """For example ``texture/Wood/017``."""
    domain: Domain
    encoded: bytes
    seamless: bool
    regular: bool
    alike: tuple[int, ...]

    @property
    def kind(self) -> str:
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class PhotoPool:
    """Photos of one split. Read-only, so that threads may share it."""

    photos: tuple[Photo, ...]

    @classmethod
    def load(
        cls,
        roots: Path | Sequence[Path],
        *,
        split: Split = "train",
        seed: int = 0,
        quiet: bool = False,
    ) -> PhotoPool:
        """Read the photos of one split.

        Args:
            roots: folders laid out as ``<root>/<kind>/*.jpg``, or folders of such folders. The
                name of a root says what its photos are (``DOMAINS``).
            split: kinds to keep. Kinds are dealt out by a hash of their family's name with
                ``seed``: 20 % of the families of each root, one at least, are validation.
            quiet: no progress bar.

        Raises:
            FileNotFoundError, NotADirectoryError, PermissionError: as ``list_folders``.
            ImageError: a photo cannot be read.
            ValueError: ``split`` is unknown, or no photo is left.
        """
        if split not in ("train", "validation"):
            raise ValueError(f"split: found {split!r}; accepted are 'train' and 'validation'.")
        roots = [roots] if isinstance(roots, Path) else list(roots)
        folders = [folder for root in roots for folder in _domain_folders(root)]
        paths = [
            (folder.name, path)
            for folder in folders
            for kind in _kinds_of_split(folder, split, seed)
            for path in list_images(kind)
        ]
        if not paths:
            raise ValueError(
                f"{', '.join(map(str, roots))}: no photo of the {split} split found. Accepted are "
                "folders laid out as FOLDER/<kind>/*.jpg with two kinds at least."
            )
        bar = track(
            paths,
            description=f"Reading {split} photos",
            console=Console(stderr=True),
            disable=quiet,
            transient=True,
        )
        return cls(_link(_read(folder, path) for folder, path in bar))

    def __len__(self) -> int:
        return len(self.photos)

    @cached_property
    def of_domain(self) -> dict[Domain, tuple[int, ...]]:
        """Indices of the photos of each domain."""
        return {
            domain: tuple(i for i, photo in enumerate(self.photos) if photo.domain == domain)
            for domain in ALIKE
        }

    @cached_property
    def of_kind(self) -> dict[str, tuple[int, ...]]:
        """Indices of the photos of each kind, such as ``texture/Wood``."""
        found: dict[str, list[int]] = {}
        for i, photo in enumerate(self.photos):
            found.setdefault(photo.kind, []).append(i)
        return {kind: tuple(indices) for kind, indices in found.items()}

    @cached_property
    def similar_goods(self) -> tuple[int, ...]:
        """Indices of the photos of goods that have three look-alikes or more."""
        goods = self.of_domain["goods"]
        return tuple(i for i in goods if len(self.photos[i].alike) >= 3)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Photo ``index``, decoded: uint8 (H, W, 3) RGB. Takes about half a millisecond."""
        buffer = np.frombuffer(self.photos[index].encoded, np.uint8)
        decoded = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
        if decoded is None:  # checked when it was read
            raise ImageError(self.photos[index].name, "no longer decodes. Load the pool again.")
        rgb: NDArray[np.uint8] = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(
            np.uint8, copy=False
        )
        return rgb


def family(kind: str) -> str:
    """Kinds of one family stay on one side of the split: all apples, all milks.

    ``Fruit_Apple_Royal-Gala`` gives ``Fruit_Apple``, ``Packages_Soy-Milk_Alpro`` gives
    ``Packages_Milk``; a name without underscores is its own family.
    """
    first, *rest = kind.split("_")
    return "_".join([first, *(part.rpartition("-")[2] for part in rest[:1])])


def appearance(image: NDArray[np.uint8], *, centre: float = 1.0) -> NDArray[np.float32]:
    """Twelve numbers on colour and coarseness; a distance of 1 is a small visible difference.

    Args:
        image: uint8 (H, W, 3) RGB.
        centre: share of each side, around the centre, that is looked at.
    """
    height, width = image.shape[:2]
    cut_y, cut_x = int(height * (1 - centre) / 2), int(width * (1 - centre) / 2)
    inner = image[cut_y : height - cut_y, cut_x : width - cut_x]
    small = resize_image(inner, (64, 64)).astype(np.float32) / np.float32(255)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)  # (64, 64, 3)
    mean, deviation = cv2.meanStdDev(lab)  # (3, 1) each
    steps: list[float] = []
    light = lab[..., 0]
    for _ in range(3):
        steps += [np.log(np.abs(np.diff(light, axis=axis)).mean() + 0.5) for axis in (0, 1)]
        light = cv2.resize(light, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    numbers = [mean[:, 0] / 8, deviation[:, 0] / 5, np.array(steps) / 0.35]
    return np.concatenate(numbers).astype(np.float32)


def regularity(image: NDArray[np.uint8]) -> float:
    """Highest second peak of the autocorrelation of a surface, about 0 (random) to 1 (regular)."""
    size, reach = 64, 32
    light = cv2.cvtColor(resize_image(image, (size, size)), cv2.COLOR_RGB2GRAY).astype(np.float32)
    light -= cv2.GaussianBlur(light, (0, 0), 10)
    light -= light.mean()
    spectrum = np.fft.rfft2(light, s=(2 * size, 2 * size))
    correlation = np.fft.irfft2(np.abs(spectrum) ** 2)  # (128, 128), lag 0 at the corner
    lag = np.minimum(np.arange(2 * size), 2 * size - np.arange(2 * size))
    overlap = np.maximum(size - lag, 1)
    correlation /= overlap[:, None] * overlap[None]
    centred = np.fft.fftshift(correlation)[
        size - reach : size + reach + 1, size - reach : size + reach + 1
    ]
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    peaks = (centred == cv2.dilate(centred, np.ones((5, 5)))) & (y * y + x * x > 25)
    middle = centred[reach, reach]
    return float(centred[peaks].max() / middle) if peaks.any() and middle > 0 else 0.0


def _domain_folders(root: Path) -> list[Path]:
    """``root`` itself when its subfolders hold images, else those of its subfolders that do."""
    subfolders = list_folders(root)
    if any(list_images(folder) for folder in subfolders):
        return [root]
    return [
        folder for folder in subfolders if any(list_images(kind) for kind in list_folders(folder))
    ]


def _kinds_of_split(folder: Path, split: Split, seed: int) -> list[Path]:
    kinds = list_folders(folder)

    def rank(name: str) -> str:
        return hashlib.sha256(f"{seed}/{folder.name}/{name}".encode()).hexdigest()

    families = sorted({family(kind.name) for kind in kinds}, key=rank)
    count = max(1, round(VALIDATION_SHARE * len(families))) if len(families) > 1 else 0
    held_out = set(families[:count])
    return [kind for kind in kinds if (family(kind.name) in held_out) == (split == "validation")]


def _read(folder: str, path: Path) -> tuple[Photo, NDArray[np.float32]]:
    """A photo, not linked yet, and its look."""
    image = read_image(path)
    content = path.read_bytes()
    domain = DOMAINS.get(folder, "things")
    if domain == "material":
        image = _without_frame(image)
    largest = max(image.shape[:2])
    as_found = domain != "material" and path.suffix.lower() in {".jpg", ".jpeg"}
    if largest > STORED_SIDE or not as_found:
        if largest > STORED_SIDE:
            height, width = (max(8, side * STORED_SIDE // largest) for side in image.shape[:2])
            image = resize_image(image, (height, width))
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    photo = Photo(
        name=f"{folder}/{path.parent.name}/{path.stem}",
        domain=domain,
        encoded=content,
        seamless=domain == "material" and _is_seamless(image),
        regular=domain != "material" or regularity(image) >= REGULAR,
        alike=(),
    )
    return photo, appearance(image, centre=0.5 if domain == "goods" else 1.0)


def _without_frame(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut off white rims that some renderings of materials have, if any."""
    rim = max(2, min(image.shape[:2]) // 24)
    white = [(edge >= 245).mean() for edge in (image[0], image[-1], image[:, 0], image[:, -1])]
    inner = image[rim:-rim, rim:-rim]
    return np.ascontiguousarray(inner) if max(white) > 0.9 and inner.mean() < 235 else image


def _is_seamless(image: NDArray[np.uint8]) -> bool:
    light = image.astype(np.float32).mean(2)
    across_rows = np.abs(light[0] - light[-1]).mean() / (np.abs(np.diff(light, axis=0)).mean() + 1)
    across = np.abs(light[:, 0] - light[:, -1]).mean() / (np.abs(np.diff(light, axis=1)).mean() + 1)
    return bool(max(across_rows, across) <= SEAMLESS)


def _link(found: Iterable[tuple[Photo, NDArray[np.float32]]]) -> tuple[Photo, ...]:
    """Fill in ``alike``: nearest first, photos of the same kind within ``ALIKE``."""
    pairs = list(found)
    looks = np.stack([numbers for _, numbers in pairs])  # (n, 12)
    pool = PhotoPool(tuple(photo for photo, _ in pairs))
    linked = []
    for i, photo in enumerate(pool.photos):
        others = np.array([j for j in pool.of_kind[photo.kind] if j != i], np.int64)
        distance = np.linalg.norm(looks[others] - looks[i], axis=1)
        order = np.argsort(distance, kind="stable")
        near = others[order[distance[order] <= ALIKE[photo.domain]]]
        linked.append(replace(photo, alike=tuple(near.tolist())))
    return tuple(linked)
