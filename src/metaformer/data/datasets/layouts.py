"""How inspection data sets lie on disk: one function a layout, folder in, ``Category`` out.

Only names and folders are looked at; no image is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from metaformer.data.datasets.category import (
    OUR_SPLIT,
    Category,
    DatasetError,
    Sample,
    category_name,
    defective_samples,
    masks_by_image,
    normal_samples,
    split_normal,
)
from metaformer.data.datasets.published_layouts import (
    load_kolektorsdd,
    load_kolektorsdd2,
    load_magnetic_tile,
    load_visa,
)
from metaformer.io.folders import list_folders, list_images

GOOD_NAMES = frozenset({"good", "ok", "normal"})
"""Folders of normal images in the plain ``folder`` layout; case does not matter."""
BAD_NAMES = frozenset(
    {"bad", "defect", "defects", "defective"}
    | {"anomaly", "anomalies", "anomalous"}
    | {"ng", "nok", "ko"}
)
"""Folders of defective images in the plain ``folder`` layout; case does not matter."""
MASK_NAMES = frozenset({"mask", "masks", "ground_truth"})


class Layout(NamedTuple):
    """The layout of one category on disk, or of a set that is one category."""

    name: str
    tree: str
    """What the folder holds, for messages."""
    matches: Callable[[Path], bool]
    load: Callable[[Path], Category]


def load_train_test(folder: Path, good: str = "good") -> Category:
    """train/good, test/<kind>, ground_truth/<kind>; ``good`` is the folder of good images.

    MVTec LOCO differs in having a folder of masks for each image; its validation images are
    not used.
    """
    test: list[Sample] = []
    kinds: list[Path] = []
    if (folder / "test").is_dir():
        kinds = list_folders(folder / "test")
        if not kinds and list_images(folder / "test"):
            raise DatasetError(
                f"{folder / 'test'}: holds images but no folders, so that which are defective is "
                f"not known. Move them into test/{good} and test/<kind of defect>."
            )
    for kind in kinds:
        images = list_images(kind)
        if kind.name == good:
            test += normal_samples(images)
        else:
            test += defective_samples(images, kind.name, folder / "ground_truth" / kind.name)
    train = list_images(folder / "train" / good)
    return Category(category_name(folder), folder, tuple(train), tuple(test))


def load_pairs(folder: Path) -> Category:
    """template/, test/, boxes/<stem>_mask.png; a test image without a mask is a normal one."""
    boxes = folder / "boxes"
    if not boxes.is_dir():
        raise DatasetError(
            f"{folder}: has template/ and test/ but no boxes/, so that which test images are "
            "defective is not known. Put a mask <stem>_mask.png of each defective one into boxes/."
        )
    templates = {path.stem: path for path in list_images(folder / "template")}
    images = list_images(folder / "test")
    if not images:
        raise DatasetError(f"{folder / 'test'}: no images. Put the images to be tested there.")
    lonely = [image for image in images if image.stem not in templates]
    if lonely:
        raise DatasetError(
            f"{lonely[0]}: no image of the same name in {folder / 'template'} "
            f"({len(lonely)} of {len(images)} test images have no template). Add the templates."
        )
    masks = masks_by_image(images, boxes)
    test = tuple(
        Sample(
            image,
            is_anomalous=bool(masks[image]),
            masks=masks[image],
            kind="defect" if masks[image] else "good",
            template=templates[image.stem],
        )
        for image in images
    )
    return Category(category_name(folder), folder, tuple(templates.values()), test)


def load_good_bad(folder: Path) -> Category:
    """good/ beside bad/ (or other ``BAD_NAMES``), masks in masks/ or masks/bad/; or good/ alone."""
    folders = list_folders(folder)
    good = [path for path in folders if path.name.lower() in GOOD_NAMES]
    bad = [path for path in folders if path.name.lower() in BAD_NAMES]
    unknown = [
        path.name
        for path in folders
        if path.name.lower() not in GOOD_NAMES | BAD_NAMES | MASK_NAMES and has_images(path)
    ]
    if unknown:
        raise DatasetError(
            f"{folder}: beside {good[0].name}/ found {', '.join(unknown)}; accepted for defective "
            f"images are {', '.join(sorted(BAD_NAMES))}. Rename them, or lay the kinds of defect "
            "out as train/good, test/good, test/<kind>."
        )
    normal = [image for path in good for image in list_images(path)]
    if not bad:
        return Category(category_name(folder), folder, tuple(normal), ())
    train, held_out = split_normal([[image] for image in normal])
    test = normal_samples(held_out)
    for path in bad:
        masks = [place for place in folders if place.name.lower() in MASK_NAMES]
        place = masks[0] if masks else folder / "masks"
        inner = place / path.name
        test += defective_samples(list_images(path), path.name, inner if inner.is_dir() else place)
    return Category(category_name(folder), folder, tuple(train), tuple(test), OUR_SPLIT)


def load_flat(folder: Path) -> Category:
    """A folder of normal images and nothing else: something to learn from, nothing to test."""
    return Category(category_name(folder), folder, tuple(list_images(folder)), ())


def has_images(folder: Path) -> bool:
    """Whether there is any image in ``folder`` or below."""
    return bool(list_images(folder, recursive=True))


def _has_labels(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _holds_good(folder: Path) -> bool:
    # Part of a broken MVTec tree is no category of its own.
    return folder.name not in ("train", "test") and any(
        path.name.lower() in GOOD_NAMES for path in list_folders(folder)
    )


LAYOUTS = (
    Layout(
        "loco",
        "train/good, test/good, test/logical_anomalies, ground_truth/<kind>/<stem>/*.png",
        lambda folder: (
            (folder / "train" / "good").is_dir()
            and (
                (folder / "test" / "logical_anomalies").is_dir()
                or (folder / "test" / "structural_anomalies").is_dir()
            )
        ),
        load_train_test,
    ),
    Layout(
        "mvtec",
        "train/good, test/good, test/<kind>, ground_truth/<kind>/<stem>_mask.png",
        lambda folder: (folder / "train" / "good").is_dir(),
        load_train_test,
    ),
    Layout(
        "btad",
        "train/ok, test/ok, test/ko, ground_truth/ko/<stem>.png",
        lambda folder: (folder / "train" / "ok").is_dir(),
        partial(load_train_test, good="ok"),
    ),
    Layout(
        "pairs",
        "template/, test/, boxes/<stem>_mask.png",
        lambda folder: (folder / "template").is_dir() and (folder / "test").is_dir(),
        load_pairs,
    ),
    Layout(
        "visa",
        "Data/Images/Normal, Data/Images/Anomaly, Data/Masks/Anomaly",
        lambda folder: (folder / "Data" / "Images" / "Normal").is_dir(),
        load_visa,
    ),
    Layout(
        "kolektorsdd",
        "kosNN/PartN.jpg with kosNN/PartN_label.bmp",
        lambda folder: any(_has_labels(item, "*_label.bmp") for item in list_folders(folder)),
        load_kolektorsdd,
    ),
    Layout(
        "kolektorsdd2",
        "train/NNN.png with train/NNN_GT.png, test/ likewise",
        lambda folder: (folder / "test").is_dir() and _has_labels(folder / "train", "*_GT.png"),
        load_kolektorsdd2,
    ),
    Layout(
        "magnetic_tile",
        "MT_Free/Imgs/*.jpg, MT_<Kind>/Imgs/*.jpg with *.png",
        lambda folder: (folder / "MT_Free" / "Imgs").is_dir(),
        load_magnetic_tile,
    ),
    Layout("folder", "good/ and bad/, or images alone", _holds_good, load_good_bad),
)
"""All layouts, the more particular ones first."""
