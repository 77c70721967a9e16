"""What may be given to adapt to and to predict on: arrays, tensors, folders, archives, lists."""

from __future__ import annotations

import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from metaformer import SkippedImageWarning
from metaformer.detection.detector import Detector
from metaformer.detection.support.given_images import PassedOverWarning
from metaformer.io.images import ImageError, read_image
from metaformer.io.sources.shards import Sources
from tests.helpers import boards, trees


@pytest.fixture(scope="module")
def detector() -> Detector:
    return boards.detector()


@pytest.fixture
def folder(tmp_path) -> Path:
    return boards.write_good(tmp_path / "good", 3)


def zipped(folder: Path) -> Path:
    archive = folder.parent / "good.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.iterdir()):
            opened.write(path, f"monday/{path.name}")
    return archive


# Tensors


@pytest.mark.parametrize(
    "change",
    [
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: torch.from_numpy(image),
        lambda image: torch.from_numpy(image).permute(2, 0, 1).float() / 255,
        lambda image: (torch.from_numpy(image).permute(2, 0, 1).double() / 255).requires_grad_(),
    ],
    ids=["channels first", "channels last", "float", "with gradient"],
)
def test_a_tensor_is_read_as_its_array(change):
    image = boards.good(0)
    assert np.array_equal(read_image(change(image)), image)


def test_grey_and_half_precision_tensors():
    grey = torch.rand(1, 20, 30).to(torch.bfloat16)
    assert np.array_equal(read_image(grey)[:, :, 0], np.rint(grey[0].float().numpy() * 255))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.rand(2, 3, 16, 16), "one by one"),
        (torch.randn(3, 16, 16), r"decimal values from .* accepted is \[0, 1\]"),
        (torch.rand(5, 16, 16), "accepted shapes"),
        (torch.zeros(3, 16, 16, dtype=torch.int64), "int64"),
    ],
)
def test_tensors_that_are_refused(tensor, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tensor)
    assert str(caught.value).startswith("tensor of shape (")


def test_a_batch_is_a_support_and_so_is_one_image(detector):
    images = np.stack([boards.good(seed) for seed in range(3)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    usual = detector.predict(boards.defective(0)).raw_score
    for support in (images, batch):
        assert boards.universal().adapt(support).predict(boards.defective(0)).raw_score == usual
    for single in (images[0], batch[0]):
        assert len(boards.universal().adapt(single).provenance["support"]) == 1


# Adapting to what predict takes


def test_an_archive_a_list_and_a_file_are_supports(folder, detector):
    usual = detector.predict(boards.defective(0)).raw_score
    paths = sorted(folder.iterdir())
    listed = folder.parent / "good.txt"
    listed.write_text("\n".join(map(str, paths)))
    for images in (
        folder,
        str(zipped(folder)),
        f"@{listed}",
        Sources((str(paths[0]), str(paths[1]), str(paths[2]))),
        Sources((str(folder.parent),), recursive=True),
    ):
        made = boards.universal().adapt(images)
        assert [image["name"] for image in made.provenance["support"]] == [
            path.name for path in paths
        ]
        assert made.predict(boards.defective(0)).raw_score == usual
    assert len(boards.universal().adapt(paths[0]).provenance["support"]) == 1


def test_what_cannot_be_read_in_an_archive_is_named(folder):
    trees.write_text_named_png(folder / "notes.png")
    with pytest.raises(ImageError, match=r"good.zip/monday/notes.png: "):
        boards.universal().adapt(zipped(folder))
    with pytest.raises(ImageError, match=r"none\.zip: no such file"):
        boards.universal().adapt("none.zip")


def test_the_root_of_a_data_set_is_recognised(tmp_path):
    one = trees.write_mvtec(tmp_path / "set" / "bracket", train=3, good=2, per_kind=1)
    good = one / "train" / "good"
    with pytest.raises(ImageError, match="data set: its good images are in") as caught:
        boards.universal().adapt(one)
    assert f"{good}. Give that." in str(caught.value)
    with pytest.raises(ValueError, match="with defective images in it") as caught:
        boards.universal().adapt(Sources((str(one),), recursive=True))
    assert f"{good}. Give that." in str(caught.value)
    trees.write_mvtec(tmp_path / "set" / "screw", train=3, good=2, per_kind=1)
    with pytest.raises(ImageError, match=r"2 products.*of bracket are in .*train/good"):
        boards.universal().adapt(tmp_path / "set")


def packed(root: Path, kind: str) -> str:
    """All files below ``root`` in an archive, or in a list."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    target = root.parent / f"packed.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(root.parent))
    elif kind == "tar":
        with tarfile.open(target, "w") as opened:
            opened.add(root, root.name)
    else:
        target.write_text("\n".join(map(str, files)))
        return f"@{target}"
    return str(target)


@pytest.mark.parametrize("kind", ["zip", "tar", "list"])
@pytest.mark.parametrize(
    ("write", "defective", "good"),
    [
        (trees.write_mvtec, "set/test/dent", "set/train/good"),
        (trees.write_btad, "set/test/ko", "set/train/ok"),
        (trees.write_good_bad, "set/bad", "set/good"),
        (trees.write_pairs, "set/boxes", "set/template"),
    ],
)
def test_defective_images_in_an_archive_or_list_are_no_support(
    tmp_path, kind, write, defective, good
):
    source = packed(write(tmp_path / "set"), kind)
    place = tmp_path if kind == "list" else source
    with pytest.raises(ValueError, match="defective images are among these") as caught:
        boards.universal().adapt(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert f"in {place}/{defective}, which a support must not have" in str(caught.value)
    assert f"The good images are in {place}/{good}. " in str(caught.value)
    assert ("Unpack it" in str(caught.value)) == (kind != "list")


def test_a_folder_of_test_images_is_no_support(tmp_path, monkeypatch):
    one = trees.write_mvtec(tmp_path / "bracket", train=3, good=2, per_kind=1)
    good = f"The good images are in {one / 'train' / 'good'}. Give that."
    for sources in (
        Sources((str(one / "test"),), recursive=True),
        Sources((str(one / "test" / "dent"),)),
    ):
        with pytest.raises(ValueError, match="defective images are among these") as caught:
            boards.universal().adapt(sources)
        assert good in str(caught.value)
    monkeypatch.chdir(one / "test")
    with pytest.raises(ValueError, match="defective images are among these"):
        boards.universal().adapt(Sources((".",), recursive=True))
    for alone in ("test/good", "train/good"):  # what names good images is no set
        source = packed(one / alone, "zip")
        assert boards.universal().adapt(source).provenance["support"]
        assert boards.universal().adapt(one / alone).provenance["support"]


def test_sub_folders_with_images_are_named(folder, tmp_path_factory):
    deep = tmp_path_factory.mktemp("bracket")
    boards.write_good(deep / "photos" / "new", 1)
    boards.write_good(deep / "photos" / "good", 2)
    with pytest.raises(ImageError, match=r"hold images: \S*photos/good \(2\), \S*photos/new \(1"):
        boards.universal().adapt(deep)
    folder.rename(folder.parent / "monday")
    with pytest.raises(ImageError, match=r"sub-folders hold images: .*monday \(3\)\. Give one"):
        boards.universal().adapt(folder.parent)


# Predicting on a folder


def test_a_folder_is_scored_in_order_with_names(detector, folder):
    found = list(detector.predict_many(folder))
    assert [Path(one.path).name for one in found] == ["000.png", "001.png", "002.png"]
    assert found[0].raw_score == detector.predict(folder / "000.png").raw_score
    packed = list(detector.predict_many(zipped(folder), workers=2))
    assert packed[0].path == f"{folder.parent / 'good.zip'}/monday/000.png"
    assert np.array_equal(packed[0].overlay(), found[0].overlay())


def test_a_bad_image_ends_is_skipped_or_is_told(detector, folder):
    trees.write_text_named_png(folder / "001.png")
    stream = detector.predict_many(folder)
    assert next(stream).path.endswith("000.png")
    with pytest.raises(ImageError, match=r"001\.png"):
        next(stream)
    with pytest.warns(SkippedImageWarning, match=r"not scored: .*001\.png"):
        assert len(list(detector.predict_many(folder, on_error="skip"))) == 2
    told: list[ImageError] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = [folder / "000.png", b"nothing", np.zeros((3, 16, 16), np.uint8)]
        assert len(list(detector.predict_many(images, on_error=told.append, workers=2))) == 1
    assert [error.path for error in told] == ["bytes (7 of them)", "array of shape (3, 16, 16)"]
    with pytest.raises(ValueError, match=r"on_error: found 'ignore'"):
        detector.predict_many(folder, on_error="ignore")


def test_a_folder_with_nothing_to_score_is_an_error(detector, tmp_path):
    with pytest.raises(ImageError, match="no images in it"):
        list(detector.predict_many(tmp_path))
    one = trees.write_mvtec(tmp_path / "bracket", train=3, good=2, per_kind=1)
    with pytest.raises(ImageError, match=r"data set: test images are in .*test"):
        list(detector.predict_many(one))


def test_an_image_whose_mask_marks_a_defect_is_refused(tmp_path):
    folder = tmp_path / "part"
    for number in range(2):
        boards.write_png(folder / f"g_{number}.png", boards.good(number))
    mask = folder / "g_0_mask.png"
    boards.write_png(mask, np.full_like(boards.good(0), 255))
    with pytest.raises(ValueError, match=r"g_0\.png \(by g_0_mask\.png\)"):
        boards.universal().adapt(folder)
    boards.write_png(mask, np.zeros_like(boards.good(0)))  # marks nothing
    with pytest.warns(PassedOverWarning):
        assert len(boards.universal().adapt(folder).provenance["support"]) == 2


def test_a_folder_of_defects_with_masks_is_refused_wherever_the_good_ones_are(tmp_path):
    folder, truth = tmp_path / "test" / "scratch", tmp_path / "ground_truth" / "scratch"
    boards.write_png(folder / "0.png", boards.good(0))
    boards.write_png(truth / "0_mask.png", np.full_like(boards.good(0), 255))
    with pytest.raises(ValueError, match=r"0\.png \(by 0_mask\.png\)"):
        boards.universal().adapt(folder)
