from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.data.datasets.loading import (
    Category,
    DatasetError,
    Sample,
    draw_support,
    load_categories,
)
from metaformer.io.images import read_image, read_mask
from tests.helpers import trees


def load_one(root: Path, layout: str = "auto") -> Category:
    (category,) = load_categories(root, layout)
    return category


def names(category: Category) -> list[str]:
    return [path.relative_to(category.root).as_posix() for path in category.train]


def outcome(sample: Sample, root: Path) -> tuple[str, str, list[str]]:
    masks = [mask.relative_to(root).as_posix() for mask in sample.masks]
    return sample.image.relative_to(root).as_posix(), sample.kind, masks


def check(category: Category) -> None:
    """What holds for every layout: all files are there, masks fit, train and test are apart."""
    for path in category.train:
        assert path.is_relative_to(category.root)
        read_image(path)
    for sample in category.test:
        image = read_image(sample.image)
        assert (sample.kind == "good") == (not sample.is_anomalous)
        assert sample.is_anomalous or not sample.masks
        for mask in sample.masks:
            assert read_mask(mask).shape == image.shape[:2]
            assert read_mask(mask).any()
    tested = [sample.image for sample in category.test]
    assert len(set(tested)) == len(tested)
    assert not set(category.train) & set(tested)


# Each layout


@pytest.mark.parametrize("layout", ["auto", "mvtec"])
def test_mvtec_category(layout, tmp_path):
    category = load_one(trees.write_mvtec(tmp_path / "bottle"), layout)
    check(category)
    assert category.name == "bottle"
    assert category.root == tmp_path / "bottle"
    assert category.split == "the set's own"
    assert names(category) == [f"train/good/{i:03d}.png" for i in range(6)]
    assert [outcome(sample, category.root) for sample in category.test] == [
        ("test/dent/000.png", "dent", ["ground_truth/dent/000_mask.png"]),
        ("test/dent/001.png", "dent", ["ground_truth/dent/001_mask.png"]),
        ("test/good/000.png", "good", []),
        ("test/good/001.png", "good", []),
        ("test/good/002.png", "good", []),
        ("test/scratch/000.png", "scratch", ["ground_truth/scratch/000_mask.png"]),
        ("test/scratch/001.png", "scratch", ["ground_truth/scratch/001_mask.png"]),
    ]
    assert category.has_masks
    assert not category.is_paired


def test_mvtec_root_in_natural_order(tmp_path):
    for name in ("part10", "part2", "bracket"):
        trees.write_mvtec(tmp_path / name)
    (tmp_path / "license.txt").write_text("...")
    (tmp_path / ".cache").mkdir()
    found = load_categories(tmp_path)
    assert [category.name for category in found] == ["bracket", "part2", "part10"]


def test_mpdd_root(tmp_path):
    """Its six kinds of parts, in the layout of MVTec AD."""
    parts = ["bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"]
    for name in parts:
        trees.write_mvtec(tmp_path / "MPDD" / name)
    categories = load_categories(tmp_path / "MPDD")
    assert [category.name for category in categories] == parts
    for category in categories:
        check(category)
        assert category.has_masks and category.split == "the set's own"


def test_mvtec_without_masks_and_with_some_missing(tmp_path):
    category = load_one(trees.write_mvtec(tmp_path / "cell", masks=False))
    assert not category.has_masks
    assert [s.masks for s in category.test if s.is_anomalous] == [()] * 4
    category = load_one(trees.write_mvtec(tmp_path / "tile"))
    category.test[0].masks[0].unlink()
    category = load_one(tmp_path / "tile")
    assert category.has_masks
    assert category.test[0].masks == ()
    assert category.test[0].is_anomalous


def test_mvtec_training_images_alone(tmp_path):
    trees.save_good(tmp_path / "train" / "good", 3)
    category = load_one(tmp_path)
    assert len(category.train) == 3
    assert category.test == ()
    assert not category.is_paired
    assert not category.has_masks


@pytest.mark.parametrize("layout", ["auto", "loco"])
def test_loco_has_several_masks_for_an_image(layout, tmp_path):
    category = load_one(trees.write_loco(tmp_path / "pushpins"), layout)
    check(category)
    assert len(category.train) == 5  # validation/good is not used
    counts = {(s.kind, s.image.stem): len(s.masks) for s in category.test}
    assert counts == {
        ("good", "000"): 0,
        ("good", "001"): 0,
        ("logical_anomalies", "000"): 1,
        ("logical_anomalies", "001"): 2,
        ("structural_anomalies", "000"): 1,
        ("structural_anomalies", "001"): 2,
    }


@pytest.mark.parametrize("layout", ["auto", "btad"])
def test_btad_root(layout, tmp_path):
    for name in ("01", "02"):
        trees.write_btad(tmp_path / name)
    found = load_categories(tmp_path, layout)
    assert [category.name for category in found] == ["01", "02"]
    for category in found:
        check(category)
        assert len(category.train) == 5
        assert [s.kind for s in category.test] == ["ko"] * 3 + ["good"] * 2
        assert all(len(s.masks) == 1 for s in category.test if s.is_anomalous)


@pytest.mark.parametrize("layout", ["auto", "pairs"])
def test_pairs(layout, tmp_path):
    for name in ("group1", "group2"):
        trees.write_pairs(tmp_path / name)
    found = load_categories(tmp_path, layout)
    assert [category.name for category in found] == ["group1", "group2"]
    for category in found:
        check(category)
        assert category.is_paired
        assert category.has_masks
        assert [s.is_anomalous for s in category.test] == [True, True, True, False]
        for sample in category.test:
            assert sample.template is not None
            assert sample.template.parent.name == "template"
            assert sample.template.stem == sample.image.stem
        assert len(category.train) == 4


def test_pairs_with_other_endings(tmp_path):
    trees.write_pairs(tmp_path, good=0)
    for path in (tmp_path / "template").iterdir():
        path.rename(path.with_suffix(".PNG"))
    assert load_one(tmp_path).is_paired


@pytest.mark.parametrize("layout", ["auto", "visa"])
def test_visa_with_its_split(layout, tmp_path):
    found = load_categories(trees.write_visa(tmp_path / "visa", split=True), layout)
    assert [category.name for category in found] == ["candle", "pcb1"]
    for category in found:
        check(category)
        assert category.split == "the set's own"
        assert len(category.train) == 8
        good = [s.image.stem for s in category.test if not s.is_anomalous]
        assert good == ["003", "007"]
        assert [len(s.masks) for s in category.test if s.is_anomalous] == [1, 1]
    assert load_one(tmp_path / "visa" / "pcb1") == found[1]


def test_visa_without_its_split(tmp_path):
    category = load_one(trees.write_visa(tmp_path, names=("candle",), split=False) / "candle")
    check(category)
    assert category.split.startswith("ours: 80%")
    assert "seed 0" in category.split
    assert len(category.train) == 8
    assert sum(s.is_anomalous for s in category.test) == 2
    assert len(category.test) == 4


def test_visa_split_that_does_not_fit(tmp_path):
    root = trees.write_visa(tmp_path, split=True)
    table = root / "split_csv" / "1cls.csv"
    rows = table.read_text()
    table.write_text(rows.replace("object", "product"))
    with pytest.raises(DatasetError, match=r"1cls.csv: found columns"):
        load_categories(root)
    table.write_text(rows.replace("pcb1,", "pcb9,"))
    with pytest.raises(DatasetError, match=r"says nothing of pcb1"):
        load_categories(root)
    table.write_text(rows)
    (root / "pcb1/Data/Images/Normal/004.png").unlink()
    with pytest.raises(DatasetError, match=r"004.png: named in .*1cls.csv, but missing"):
        load_categories(root)


@pytest.mark.parametrize("layout", ["auto", "kolektorsdd"])
def test_kolektorsdd_keeps_the_parts_of_an_item_together(layout, tmp_path):
    category = load_one(trees.write_kolektorsdd(tmp_path / "KolektorSDD"), layout)
    check(category)
    assert category.name == "KolektorSDD"
    assert "seed 0" in category.split
    assert sum(s.is_anomalous for s in category.test) == 3
    tested = {s.image.parent.name for s in category.test if not s.is_anomalous}
    trained = {path.parent.name for path in category.train}
    assert len(tested) == 1
    assert len(trained) == 4
    assert not tested & trained


@pytest.mark.parametrize("layout", ["auto", "kolektorsdd2"])
def test_kolektorsdd2(layout, tmp_path):
    category = load_one(trees.write_kolektorsdd2(tmp_path), layout)
    check(category)
    assert names(category) == [f"train/{i}.png" for i in range(10002, 10006)]
    assert [(s.image.name, s.is_anomalous) for s in category.test] == [
        ("10000.png", True),
        ("10001.png", True),
        ("10002.png", False),
        ("10003.png", False),
    ]


@pytest.mark.parametrize("layout", ["auto", "magnetic_tile"])
def test_magnetic_tile(layout, tmp_path):
    category = load_one(trees.write_magnetic_tile(tmp_path), layout)
    check(category)
    assert len(category.train) == 8
    assert all(path.suffix == ".jpg" for path in category.train)
    assert [s.kind for s in category.test] == ["good"] * 2 + ["blowhole"] * 2 + ["crack"]
    assert all(len(s.masks) == 1 for s in category.test if s.is_anomalous)


@pytest.mark.parametrize(
    ("good", "bad"), [("good", "bad"), ("OK", "NG"), ("normal", "anomaly"), ("good", "defect")]
)
def test_good_beside_bad(good, bad, tmp_path):
    category = load_one(trees.write_good_bad(tmp_path, good, bad))
    check(category)
    assert len(category.train) == 8
    assert "ours" in category.split
    assert [s.kind for s in category.test] == ["good"] * 2 + [bad] * 3
    assert all(len(s.masks) == 1 for s in category.test if s.is_anomalous)


def test_good_beside_bad_with_masks_in_a_folder_of_that_name(tmp_path):
    trees.save_good(tmp_path / "good", 1)
    trees.save_defective(tmp_path / "bad", tmp_path / "ground_truth" / "bad", 2)
    category = load_one(tmp_path)
    check(category)
    assert len(category.train) == 1  # nothing is held out of a single image
    assert category.has_masks


def test_good_alone_and_flat_folder(tmp_path):
    trees.save_good(tmp_path / "part" / "good", 4)
    assert len(load_one(tmp_path / "part").train) == 4
    flat = load_one(tmp_path / "part" / "good")
    assert len(flat.train) == 4
    assert flat.test == ()


def test_unknown_folder_beside_good(tmp_path):
    trees.save_good(tmp_path / "good", 2)
    trees.save_good(tmp_path / "scratch", 2)
    with pytest.raises(DatasetError, match=r"found scratch; accepted .*bad.*test/<kind>"):
        load_categories(tmp_path)


def test_one_more_folder_around(tmp_path):
    for name in ("01", "02"):
        trees.write_btad(tmp_path / "archive" / "BTech" / name)
    assert [c.name for c in load_categories(tmp_path)] == ["01", "02"]


def test_clutter_and_links(tmp_path):
    folder = trees.write_mvtec(tmp_path / "real")
    clean = load_one(folder)
    for name in (".DS_Store", "Thumbs.db", "._000.png", "notes.txt"):
        (folder / "train" / "good" / name).write_bytes(b"x")
    (folder / "test" / ".ipynb_checkpoints").mkdir()
    assert load_one(folder) == clean
    (tmp_path / "link").symlink_to(folder)
    linked = load_one(tmp_path / "link")
    assert linked.name == "link"
    assert names(linked) == names(clean)


def test_relative_root(tmp_path, monkeypatch):
    monkeypatch.chdir(trees.write_mvtec(tmp_path / "bottle"))
    assert load_one(Path()).name == "bottle"


# What goes wrong


def test_missing_folder_and_file_given(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_categories(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="a file"):
        load_categories(trees.write_good_png(tmp_path / "a.png"))


def test_nothing_recognisable(tmp_path):
    trees.save_good(tmp_path / "pictures", 2)
    (tmp_path / "papers").mkdir()
    with pytest.raises(DatasetError) as caught:
        load_categories(tmp_path)
    message = str(caught.value)
    assert "papers/, pictures/" in message
    for name in ("mvtec: train/good", "pairs: template/", "visa:", "folder:"):
        assert name in message


def test_empty_folder(tmp_path):
    with pytest.raises(DatasetError, match=r"Found 0 images and the folders \(none\)"):
        load_categories(tmp_path)


def test_layout_by_name(tmp_path):
    trees.write_mvtec(tmp_path)
    with pytest.raises(ValueError, match="'mvtech' is not known; use one of auto, loco, mvtec"):
        load_categories(tmp_path, "mvtech")
    with pytest.raises(DatasetError, match="no data set recognised"):
        load_categories(tmp_path, "visa")


def test_no_normal_images(tmp_path):
    folder = trees.write_mvtec(tmp_path / "bottle")
    shutil.rmtree(folder / "train" / "good")
    (folder / "train" / "good").mkdir()
    with pytest.raises(DatasetError, match=r"no normal training images \(bottle has 7 test"):
        load_categories(folder)


def test_a_broken_category_is_not_left_out_silently(tmp_path):
    trees.write_mvtec(tmp_path / "bottle")
    broken = trees.write_mvtec(tmp_path / "cable")
    shutil.rmtree(broken / "train")
    with pytest.raises(DatasetError, match=r"bottle have the layout mvtec .*but cable have not"):
        load_categories(tmp_path)


def test_masks_of_other_names(tmp_path):
    folder = trees.write_mvtec(tmp_path / "bottle", kinds=("dent",))
    for mask in (folder / "ground_truth" / "dent").iterdir():
        mask.rename(mask.with_name(mask.name.replace("_mask", "-truth")))
    with pytest.raises(DatasetError, match=r"none of its masks \(such as 000-truth.png\)"):
        load_categories(folder)


def test_unsorted_test_images(tmp_path):
    trees.save_good(tmp_path / "train" / "good", 2)
    trees.save_good(tmp_path / "test", 2)
    with pytest.raises(DatasetError, match="Move them into test/good and test/<kind of defect>"):
        load_categories(tmp_path)


def test_incomplete_pairs(tmp_path):
    folder = trees.write_pairs(tmp_path / "board")
    (folder / "template" / "001.png").unlink()
    with pytest.raises(DatasetError, match=r"001.png: no image of the same name .*\(1 of 4"):
        load_categories(folder)
    folder = trees.write_pairs(tmp_path / "other")
    shutil.rmtree(folder / "boxes")
    with pytest.raises(DatasetError, match="no boxes/"):
        load_categories(folder)
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    (folder / "boxes").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        load_categories(folder)


# Support draws


def category_of(files: list[str]) -> Category:
    root = Path("data") / "part"
    return Category("part", root, tuple(root / name for name in files), ())


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(
        st.text("abc09é_", min_size=1, max_size=5), min_size=1, max_size=15, unique=True
    ),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_draws_nest_and_ignore_the_order_of_files(files, seed, data):
    category = category_of(files)
    shuffled = category_of(data.draw(st.permutations(files)))
    everything = draw_support(category, None, seed)
    assert sorted(everything) == sorted(category.train)
    for shots in range(1, len(files) + 1):
        drawn = draw_support(shuffled, shots, seed)
        assert drawn == everything[:shots]


def test_draws_are_the_same_for_ever():
    # Pinned: results name their seeds, and another draw would make them irreproducible.
    category = category_of([f"{i:03d}.png" for i in range(20)])
    drawn = {seed: [int(p.stem) for p in draw_support(category, 5, seed)] for seed in (0, 1, 2)}
    assert drawn == {0: [4, 19, 6, 2, 13], 1: [1, 10, 18, 16, 7], 2: [6, 18, 7, 10, 2]}


def test_seeds_differ():
    category = category_of([f"{i:03d}.png" for i in range(50)])
    draws = {tuple(draw_support(category, 4, seed)) for seed in range(20)}
    assert len(draws) == 20


def test_a_name_stored_decomposed_sorts_the_same():
    composed, decomposed = (
        category_of(["z.png", "\u00e9.png"]),
        category_of(["z.png", "e\u0301.png"]),
    )
    first = [path.name == "z.png" for path in draw_support(composed, None, 3)]
    assert first == [path.name == "z.png" for path in draw_support(decomposed, None, 3)]


def test_draws_that_cannot_be(tmp_path):
    category = load_one(trees.write_mvtec(tmp_path / "bottle"))
    with pytest.raises(DatasetError, match=r"7 shots asked of bottle, which has 6 normal"):
        draw_support(category, 7, 0)
    with pytest.raises(ValueError, match="shots is 0"):
        draw_support(category, 0, 0)
    assert len(draw_support(category, 6, 0)) == 6


def test_our_split_is_the_same_for_ever(tmp_path):
    category = load_one(trees.write_good_bad(tmp_path))
    held_out = [s.image.stem for s in category.test if not s.is_anomalous]
    assert held_out == ["004", "006"]


def test_importing_loads_no_decoder():
    code = (
        "import sys, metaformer.data.datasets.loading; "
        "print({'cv2', 'PIL', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_trees_are_real_defects():
    image, mask = trees.defective_product(3)
    assert mask.sum() == 64
    good = trees.product(3)
    assert np.array_equal((image != good).any(axis=2), mask)
