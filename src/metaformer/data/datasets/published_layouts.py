"""Layouts of VisA, KolektorSDD, KolektorSDD2 and Magnetic Tile, as their authors publish them.

The labels of the KolektorSDD sets are opened, being the only place that says whether a part is
defective; otherwise names and folders tell everything.
"""

from __future__ import annotations

import csv
from pathlib import Path

from metaformer.data.datasets.category import (
    OUR_SPLIT,
    Category,
    DatasetError,
    Sample,
    category_name,
    defective_samples,
    normal_samples,
    split_normal,
)
from metaformer.io.folders import list_folders, list_images


def load_visa(folder: Path) -> Category:
    """VisA as published: Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly.

    Train and test are those of ``split_csv/1cls.csv`` beside the category, if it is there.
    """
    split_file = folder.parent / "split_csv" / "1cls.csv"
    if split_file.is_file():
        return _load_visa_split(folder, split_file)
    images = folder / "Data" / "Images"
    anomalies = list_images(images / "Anomaly") if (images / "Anomaly").is_dir() else []
    train, normal = split_normal([[image] for image in list_images(images / "Normal")])
    defective = defective_samples(anomalies, "anomaly", folder / "Data" / "Masks" / "Anomaly")
    test = (*normal_samples(normal), *defective)
    return Category(category_name(folder), folder, tuple(train), test, OUR_SPLIT)


def _load_visa_split(folder: Path, split_file: Path) -> Category:
    # Columns object, split, label, image, mask (github.com/amazon-science/spot-diff).
    with split_file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        columns = {"object", "split", "label", "image", "mask"}
        if not columns.issubset(reader.fieldnames or ()):
            raise DatasetError(
                f"{split_file}: found columns {reader.fieldnames}; needed are {sorted(columns)}. "
                "Use the file that comes with VisA, or remove it."
            )
        rows = [row for row in reader if row["object"] == category_name(folder)]
    if not rows:
        raise DatasetError(
            f"{split_file}: says nothing of {category_name(folder)}. Add it, or remove it."
        )
    train: list[Path] = []
    test: list[Sample] = []
    root = split_file.parent.parent
    for row in rows:
        image = root / row["image"]
        is_anomalous = row["label"] != "normal"
        masks = (root / row["mask"],) if is_anomalous and row["mask"] else ()
        for path in (image, *masks):
            if not path.is_file():
                raise DatasetError(f"{path}: named in {split_file}, but missing. Unpack it again.")
        if row["split"] == "test":
            test.append(Sample(image, is_anomalous, masks, "anomaly" if is_anomalous else "good"))
        elif not is_anomalous:
            train.append(image)
    return Category(category_name(folder), folder, tuple(train), tuple(test))


def load_kolektorsdd(folder: Path) -> Category:
    """KolektorSDD: kosNN/PartN.jpg with PartN_label.bmp.

    There is no split for learning from normal images alone: all defective images are tested, and
    the normal ones are divided by commutator (kosNN), so that no normal test image shows a part
    that was trained on.
    """
    items = [_labelled(item, "_label") for item in list_folders(folder)]
    train, normal = split_normal([[image for image, mask in item if not mask] for item in items])
    defective = [pair for item in items for pair in item if pair[1]]
    test = normal_samples(normal) + [
        Sample(image, True, mask, "defect") for image, mask in defective
    ]
    split = OUR_SPLIT.replace("images", "parts")
    return Category(category_name(folder), folder, tuple(train), tuple(test), split)


def load_kolektorsdd2(folder: Path) -> Category:
    """KolektorSDD2: train/NNN.png with NNN_GT.png, likewise test/.

    The defective ones of its training images are left out.
    """
    train = [image for image, mask in _labelled(folder / "train", "_GT") if not mask]
    test = [
        Sample(image, bool(mask), mask, "defect" if mask else "good")
        for image, mask in _labelled(folder / "test", "_GT")
    ]
    return Category(category_name(folder), folder, tuple(train), tuple(test))


def _labelled(folder: Path, suffix: str) -> list[tuple[Path, tuple[Path, ...]]]:
    """Images that have a label beside them, with the label as mask if it marks anything.

    What has no label is no image of the set (KolektorSDD2 ships two stray copies).
    """
    from metaformer.io.images import read_mask  # decoders are slow to import

    paths = list_images(folder)
    labels = {path.stem.removesuffix(suffix): path for path in paths if path.stem.endswith(suffix)}
    images = [path for path in paths if path.stem in labels]
    return [
        (image, (labels[image.stem],) if read_mask(labels[image.stem]).any() else ())
        for image in images
    ]


def load_magnetic_tile(folder: Path) -> Category:
    """Magnetic Tile as published: MT_<Kind>/Imgs/*.jpg with masks *.png, MT_Free for normal."""
    kinds = {
        path.name.removeprefix("MT_").lower(): path / "Imgs"
        for path in list_folders(folder)
        if path.name.startswith("MT_") and (path / "Imgs").is_dir()
    }
    photos = {
        kind: [path for path in list_images(imgs) if path.suffix.lower() != ".png"]
        for kind, imgs in kinds.items()
    }
    train, normal = split_normal([[image] for image in photos.pop("free")])
    test = normal_samples(normal)
    for kind, images in photos.items():
        for image in images:
            mask = image.with_suffix(".png")
            test.append(Sample(image, True, (mask,) if mask.is_file() else (), kind))
    return Category(category_name(folder), folder, tuple(train), tuple(test), OUR_SPLIT)
