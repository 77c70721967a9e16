"""What is known of images from their folders, masks and tables of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metaformer.data.datasets.truth import FolderTruth, LabelsError, LabelTable, Outcomes
from tests.helpers import boards

MASK = np.zeros((boards.SIDE, boards.SIDE), np.uint8)
MASK[40:60, 40:60] = 255


def write_mvtec(root: Path) -> Path:
    boards.write_good(root / "train" / "good", 2)
    boards.write_good(root / "test" / "good", 2, seed=50)
    boards.write_png(root / "test" / "scratch" / "000.png", boards.defective(0))
    boards.write_png(root / "ground_truth" / "scratch" / "000_mask.png", MASK)
    return root


def test_folders_of_a_data_set_say_what_is_true(tmp_path):
    root, truth = write_mvtec(tmp_path / "board"), FolderTruth()
    good = truth(str(root / "test" / "good" / "000.png"))
    bad = truth(str(root / "test" / "scratch" / "000.png"))
    assert good and (good.is_anomalous, good.kind, good.masks) == (False, "good", ())
    assert bad and (bad.is_anomalous, bad.kind) == (True, "scratch")
    assert bad.masks == (root / "ground_truth" / "scratch" / "000_mask.png",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lot 7/OK/a.png", False),
        ("lot 7/good/a.png", False),
        ("monday.zip/good/a.png", False),
        ("C:\\photos\\good\\a.png", False),
        ("lot 7/NOK/a.png", True),
        ("lot 7/a.png", None),
        ("good.png", None),
        ("line/test/monday/a.png", None),  # no good/ beside it: not a data set
        ("s3://bucket/good/a.png", False),
    ],
)
def test_names_of_folders(name, expected):
    found = FolderTruth()(name)
    assert (None if found is None else found.is_anomalous) is expected


def test_masks_beside_images_say_what_is_true(tmp_path):
    for name, mask in (("bad", MASK), ("fine", np.zeros_like(MASK))):
        boards.write_png(tmp_path / f"{name}.png", boards.good(0))
        boards.write_png(tmp_path / f"{name}_mask.png", mask)
    boards.write_png(tmp_path / "unknown.png", boards.good(1))
    truth = FolderTruth()
    bad, fine = truth(str(tmp_path / "bad.png")), truth(str(tmp_path / "fine.png"))
    assert bad and bad.is_anomalous and bad.masks == (tmp_path / "bad_mask.png",)
    assert fine and not fine.is_anomalous
    assert truth(str(tmp_path / "unknown.png")) is None


def test_a_set_of_pairs_has_its_masks_in_boxes(tmp_path):
    boards.write_mixed(tmp_path / "test", 2)
    boards.write_png(tmp_path / "boxes" / "001_mask.png", MASK)
    truth = FolderTruth()
    known = [truth(str(tmp_path / "test" / f"{i:03d}.png")) for i in range(2)]
    assert [sample and sample.is_anomalous for sample in known] == [False, True]


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> LabelTable:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return LabelTable(path)


def test_a_table_of_labels(tmp_path):
    boards.write_png(tmp_path / "masks" / "b.png", MASK)
    table = write_table(
        tmp_path,
        "\ufefffile,label,mask\na.png,good\nb.png,scratch,masks/b.png\nc.png,,masks/b.png\n",
    )
    a, b, c = (table(f"/photos/{name}.png") for name in "abc")
    assert a and not a.is_anomalous
    assert b and (b.is_anomalous, b.kind, b.masks) == (
        True,
        "scratch",
        (tmp_path / "masks" / "b.png",),
    )
    assert c and (c.is_anomalous, c.kind) == (True, "defect")
    assert table("/photos/d.png") is None
    assert table.describe().endswith("labels 1 good, 1 scratch, 1 defect.")
    assert table.unused() == []


def test_a_longer_path_decides_between_files_of_one_name(tmp_path):
    table = write_table(tmp_path, "line 1/a.png;ok\nline 2/a.png;ng\nline 3/b.png;ok\n")
    first, second = table("/x/line 1/a.png"), table("line 2\\a.png")
    assert first and second and (first.is_anomalous, second.is_anomalous) == (False, True)
    assert table("/x/a.png") is None
    assert table.unused() == ["line 3/b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,good\na.png,bad\n", r"line 2: a\.png is there twice"),
        ("a.png\n", r"line 1: found 'a\.png'; accepted is file,label"),
        ("a.png,bad,nowhere.png\n", r"line 1: there is no mask .*nowhere\.png"),
        ("file,label\n", "no labels in it"),
        ("image,class\na.png,good\n", "the first line names the columns image, class; needed are"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_by_its_line(tmp_path, text, message):
    with pytest.raises(LabelsError, match=message):
        write_table(tmp_path, text)


def test_other_encodings_and_missing_tables_are_refused(tmp_path):
    with pytest.raises(LabelsError, match="not UTF-8"):
        write_table(tmp_path, "ä.png,good\n", "utf-16")
    with pytest.raises(FileNotFoundError, match="no such table"):
        LabelTable(tmp_path / "none.csv")


def test_outcomes_are_counted_and_told():
    root = "set/test"
    outcomes = Outcomes()
    truth = FolderTruth()
    assert outcomes.describe() == ""
    for name, is_anomalous in (("good/a", True), ("good/b", False), ("bad/c", True), ("x/d", True)):
        outcomes.add(truth(f"{root}/{name}.png"), is_anomalous)
    assert (outcomes.caught, outcomes.missed, outcomes.false_alarms, outcomes.passed) == (
        1,
        0,
        1,
        1,
    )
    assert outcomes.describe() == (
        "1 of 1 defective images caught, 1 of 2 good images flagged (where the truth is known)."
    )
