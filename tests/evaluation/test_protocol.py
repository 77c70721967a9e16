"""The evaluation harness on small real trees, with methods whose right result is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from metaformer.data.datasets.loading import DatasetError, load_categories
from metaformer.evaluation.metrics import IMAGE_METRICS, METRICS, PIXEL_METRICS
from metaformer.evaluation.protocol import evaluate, save_results
from metaformer.evaluation.table import results_table, threshold_table
from metaformer.evaluation.threshold_metrics import THRESHOLD_METRICS
from metaformer.io.images import ImageError

Image = NDArray[np.uint8]
SIDE = 32


class Difference:
    """Gap to the mean of the support; score is its maximum. Right on the trees below."""

    name = "difference"

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"resolution": SIDE}
        self.supports: list[list[Image]] = []
        self.seeds: list[int] = []
        self.batches: list[int] = []

    def fit(self, support: Sequence[Image], seed: int) -> FittedDifference:
        self.supports.append(list(support))
        self.seeds.append(seed)
        return FittedDifference(self, np.mean(np.stack(support), axis=0))


class FittedDifference:
    threshold = 30.0
    """Between what the good images and what the squares differ by."""

    def __init__(self, method: Difference, mean: NDArray[np.float64]) -> None:
        self.method, self.mean = method, mean

    def score(self, images: Sequence[Image]) -> list[tuple[float, NDArray[np.float32]]]:
        self.method.batches.append(len(images))
        results = []
        for image in images:
            mean = cv2.resize(self.mean, image.shape[1::-1])
            gap = np.abs(image - mean).mean(axis=2).astype(np.float32)
            results.append((float(gap.max()), gap))
        return results


class Broken(Difference):
    """Returns what a method must not."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def fit(self, support: Sequence[Image], seed: int) -> FittedBroken:
        return FittedBroken(self, np.mean(np.stack(support), axis=0))


class FittedBroken(FittedDifference):
    def score(self, images: Sequence[Image]) -> list[tuple[float, NDArray[np.float32]]]:
        assert isinstance(self.method, Broken)
        score, gap = super().score(images)[0]
        faults = {
            "nan score": [(math.nan, gap)] * len(images),
            "nan map": [(score, np.full_like(gap, np.nan))] * len(images),
            "small map": [(score, gap[1:])] * len(images),
            "few": [(score, gap)] * (len(images) - 1),
        }
        return faults[self.method.fault]


def product(rng: np.random.Generator, brightness: int = 100) -> Image:
    return rng.integers(brightness, brightness + 10, (SIDE, SIDE, 3), dtype=np.uint8)


def write(path: Path, image: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def make_category(
    root: Path, *, seed: int = 0, masks: bool = True, normal: int = 4, mask_scale: int = 1
) -> Path:
    """MVTec-AD layout: 6 training images, normal ones, and 5 with a bright square."""
    rng = np.random.default_rng(seed)
    for i in range(6):
        write(root / f"train/good/{i:03}.png", product(rng))
    for i in range(normal):
        write(root / f"test/good/{i:03}.png", product(rng))
    for i in range(5):
        image, mask = product(rng), np.zeros((SIDE, SIDE), np.uint8)
        image[4 : 8 + i, 10:16] = 250
        mask[4 : 8 + i, 10:16] = 255
        write(root / f"test/spot/{i:03}.png", image)
        if masks:
            large = cv2.resize(
                mask, None, fx=mask_scale, fy=mask_scale, interpolation=cv2.INTER_NEAREST
            )
            write(root / f"ground_truth/spot/{i:03}_mask.png", large)
    return root


def make_pairs(root: Path, count: int = 4) -> Path:
    """Every board has its own brightness: only its own template predicts it."""
    rng = np.random.default_rng(0)
    for i in range(count):
        write(root / f"template/{i:03}.png", product(rng, 20 + 50 * i))
        image, mask = product(rng, 20 + 50 * i), np.zeros((SIDE, SIDE), np.uint8)
        image[20:25, 3:9] += 60
        mask[20:25, 3:9] = 255
        write(root / f"test/{i:03}.png", image)
        write(root / f"boxes/{i:03}_mask.png", mask)
    return root


def test_one_category_has_every_promised_key_and_a_perfect_score(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt")
    method = Difference()
    results = evaluate(root, method, shots=3, seeds=(0, 5), batch_size=4, quiet=True)
    assert results["preset"] == "difference"
    assert (results["shots"], results["seeds"], results["resolution"]) == (3, [0, 5], SIDE)
    right = {"recall": 1.0, "false_alarm_rate": 0.0, "recall_at_5": 1.0}
    assert results["mean"] == dict.fromkeys(METRICS, 1.0) | right
    assert results["std"] == dict.fromkeys([*METRICS, *right], 0.0)
    assert results["mean_ci"]["image_auroc"] == [1.0, 1.0]
    assert results["undefined"] == {}
    assert results["counts"] == {
        "train": 6,
        "test_normal": 4,
        "test_defective": 5,
        "defective_without_mask": 0,
    }
    for entry, seed in zip(results["per_seed"], (0, 5), strict=True):
        assert entry["seed"] == seed
        assert {*METRICS, "support"} <= entry.keys()
        assert len(set(entry["support"])) == 3
        for path in entry["support"]:
            assert (root / path).is_file()
            assert path.startswith("train/good/")
    assert 0 <= results["seconds"]["adapt"] < 1
    assert 0 <= results["seconds"]["predict_per_image"] < 1
    assert method.seeds == [0, 5]
    assert [len(support) for support in method.supports] == [3, 3]
    assert method.batches == [4, 4, 1] * 2


def test_the_support_given_is_the_support_written_down(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt")
    method = Difference()
    results = evaluate(root, method, shots=2, seeds=(1,), quiet=True)
    for path, image in zip(results["per_seed"][0]["support"], method.supports[0], strict=True):
        stored = cv2.imread(str(root / path))
        assert stored is not None
        assert np.array_equal(stored[:, :, ::-1], image)


def test_full_takes_all_training_images_and_one_seed_has_no_spread(tmp_path: Path) -> None:
    results = evaluate(
        make_category(tmp_path / "bolt"), Difference(), shots="full", seeds=(0,), quiet=True
    )
    assert results["shots"] == "full"
    assert len(results["per_seed"][0]["support"]) == 6
    assert results["std"] == dict.fromkeys([*METRICS, *THRESHOLD_METRICS])


def test_results_are_the_same_again_but_for_time(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt")
    first, second = (
        evaluate(root, Difference(), shots=1, seeds=(0, 1), quiet=True) for _ in range(2)
    )
    for results in (first, second):
        del results["seconds"], results["date"]
    assert first == second


def test_missing_masks_leave_the_image_metrics(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt", masks=False)
    results = evaluate(root, Difference(), shots=2, seeds=(0,), quiet=True)
    expected = dict.fromkeys(IMAGE_METRICS, 1.0) | dict.fromkeys(PIXEL_METRICS)
    assert {key: results["mean"][key] for key in METRICS} == expected
    assert results["undefined"] == {"pixel": "the set has no masks"}


def test_no_normal_test_image_leaves_the_pixel_metrics(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt", normal=0)
    results = evaluate(root, Difference(), shots=2, seeds=(0,), quiet=True)
    expected = dict.fromkeys(IMAGE_METRICS) | dict.fromkeys(PIXEL_METRICS, 1.0)
    assert results["mean"] == expected | {
        "recall": 1.0,  # the shipped threshold needs no good test image
        "false_alarm_rate": None,
        "recall_at_5": None,
    }
    assert results["undefined"] == {"image": "no normal test image"}
    assert results["mean_ci"]["image_auroc"] is None
    assert results["mean_ci"]["false_alarm_rate"] is None


def test_defective_image_with_an_empty_mask_is_in_no_pixel_metric(tmp_path: Path) -> None:
    """Counted as normal pixels, its bright square would spoil the perfect result."""
    root = make_category(tmp_path / "bolt")
    write(root / "ground_truth/spot/002_mask.png", np.zeros((SIDE, SIDE), np.uint8))
    results = evaluate(root, Difference(), shots=3, seeds=(0,), quiet=True)
    assert results["counts"]["defective_without_mask"] == 1
    assert {key: results["mean"][key] for key in METRICS} == dict.fromkeys(METRICS, 1.0)


def test_masks_of_another_size_are_met_at_their_own(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt", mask_scale=4)
    results = evaluate(root, Difference(), shots=3, seeds=(0,), quiet=True)
    assert results["mean"]["pixel_auroc"] > 0.999
    # The enlarged map is blurred at the edges where the mask is sharp.
    assert 0.9 < results["mean"]["pixel_f1max"] < 1


def test_mask_of_other_proportions_is_refused(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt")
    mask = np.full((SIDE, 2 * SIDE), 255, np.uint8)
    write(root / "ground_truth/spot/002_mask.png", mask)
    with pytest.raises(ValueError, match=r"002_mask\.png: mask of .* proportions"):
        evaluate(root, Difference(), shots=3, seeds=(0,), quiet=True)


def test_pairs_are_fitted_to_their_own_template(tmp_path: Path) -> None:
    root = make_pairs(tmp_path / "boards")
    method = Difference()
    results = evaluate(root, method, shots=10, seeds=(0, 7), quiet=True)
    assert (results["shots"], results["paired"]) == (1, True)
    assert results["per_seed"][0]["support"] == [f"template/{i:03}.png" for i in range(4)]
    assert results["per_seed"][1]["support"] == results["per_seed"][0]["support"]
    assert method.seeds == [0] * 4 + [7] * 4
    assert [len(support) for support in method.supports] == [1] * 8
    assert results["undefined"] == {"image": "no normal test image"}
    # A wrong template would be 50 levels off everywhere and hide the defects.
    assert results["mean"]["pixel_auroc"] == 1.0


def test_several_categories_are_averaged_where_defined(tmp_path: Path) -> None:
    make_category(tmp_path / "set/bolt", seed=1)
    make_category(tmp_path / "set/nut", seed=2, masks=False)
    results = evaluate(tmp_path / "set", Difference(), shots=2, seeds=(0, 1), quiet=True)
    assert list(results["categories"]) == ["bolt", "nut"]
    assert {key: results["mean"][key] for key in METRICS} == dict.fromkeys(METRICS, 1.0)
    assert results["mean"]["recall"] == 1.0
    assert set(results["kinds"]) == {"bolt/spot", "bolt/good", "nut/spot", "nut/good"}
    assert results["undefined"] == {"pixel": "nut: the set has no masks"}
    assert results["counts"]["test_defective"] == 10
    first = results["per_seed"][0]
    assert len(first["support"]) == 4
    for path in first["support"]:
        assert (tmp_path / "set" / path).is_file()
    single = evaluate(tmp_path / "set/bolt", Difference(), shots=2, seeds=(0, 1), quiet=True)
    assert single["per_seed"] == results["categories"]["bolt"]["per_seed"]
    assert single.keys() - {"category", "split"} <= results.keys()


def test_mean_over_categories_is_the_mean(tmp_path: Path) -> None:
    """One category the method gets right, one with swapped labels that it gets wrong."""
    make_category(tmp_path / "set/a")
    swapped = make_category(tmp_path / "set/b", masks=False, normal=5)
    for i in range(5):
        normal, spot = swapped / f"test/good/{i:03}.png", swapped / f"test/spot/{i:03}.png"
        normal.rename(swapped / "x.png")
        spot.rename(normal)
        (swapped / "x.png").rename(spot)
    results = evaluate(tmp_path / "set", Difference(), shots=2, seeds=(0, 1), quiet=True)
    assert results["categories"]["b"]["mean"]["image_auroc"] == 0.0
    assert results["mean"]["image_auroc"] == 0.5
    assert results["mean_ci"]["image_auroc"] == [0.5, 0.5]


def test_limit_keeps_both_classes_and_is_written_down(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt", normal=12)
    method = Difference()
    results = evaluate(root, method, shots=2, seeds=(0, 1), test_limit=6, quiet=True)
    assert results["test_limit"] == 6
    assert sum(method.batches) == 12
    assert results["counts"]["test_normal"] == 4
    assert results["counts"]["test_defective"] == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan score", "png: difference gave the score nan"),
        ("nan map", "png: difference gave a map with NaN"),
        ("small map", "gave a map of .31, 32., the image is .32, 32."),
        ("few", "gave 7 scores for 8 images"),
    ],
)
def test_faulty_methods_are_caught(tmp_path: Path, fault: str, message: str) -> None:
    root = make_category(tmp_path / "bolt")
    with pytest.raises(ValueError, match=message):
        evaluate(root, Broken(fault), shots=2, seeds=(0,), quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots must be"),
        ({"seeds": ()}, "seeds must be"),
        ({"seeds": (1, 1)}, "different"),
        ({"batch_size": 0}, "batch_size"),
        ({"test_limit": 1}, "test_limit"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    root = make_category(tmp_path / "bolt")
    with pytest.raises(ValueError, match=message):
        evaluate(root, Difference(), quiet=True, **options)


def test_too_few_images_anywhere_are_told_before_the_first_fit(tmp_path: Path) -> None:
    make_category(tmp_path / "set/a")
    (make_category(tmp_path / "set/b") / "train/good/005.png").unlink()
    method = Difference()
    with pytest.raises(DatasetError):
        evaluate(tmp_path / "set", method, shots=6, quiet=True)
    assert method.supports == []


def test_two_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    make_category(tmp_path / "monday" / "part")
    make_category(tmp_path / "friday" / "part")
    both = [load_categories(tmp_path / day / "part")[0] for day in ("monday", "friday")]
    with pytest.raises(ValueError, match="several categories are called part"):
        evaluate(both, Difference(), shots=1, seeds=(0,), quiet=True)


def test_unreadable_test_image_stops_the_evaluation(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt")
    (root / "test/good/001.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"001\.png"):
        evaluate(root, Difference(), shots=2, seeds=(0,), quiet=True)


def test_categories_already_loaded_and_no_category(tmp_path: Path) -> None:
    categories = load_categories(make_category(tmp_path / "bolt"))
    for data in (categories, categories[0]):
        assert evaluate(data, Difference(), shots=1, seeds=(0,), quiet=True)["category"] == "bolt"
    with pytest.raises(ValueError, match="no category"):
        evaluate([], Difference(), quiet=True)
    with pytest.raises(ValueError, match="no test images"):
        evaluate(tmp_path / "bolt/train/good", Difference(), quiet=True)


def test_file_is_plain_json_and_the_table_reads_it_back(tmp_path: Path) -> None:
    make_category(tmp_path / "set/bolt")
    make_category(tmp_path / "set/nut", masks=False)
    results = evaluate(tmp_path / "set", Difference(), shots=2, quiet=True)
    save_results(results, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert str(tmp_path) not in text  # a result tells nothing of the machine's folders
    stored = json.loads(text)
    assert stored == results
    for summary in (stored, stored["categories"]["bolt"] | {"preset": "x", "test_limit": 3}):
        output = StringIO()
        Console(file=output, width=80).print(results_table(summary))
        assert "100.0" in output.getvalue()
        assert "±0.0" in output.getvalue()
        assert "bolt" in output.getvalue()
        assert "…" not in output.getvalue()  # nothing cut off at 80 columns
    output = StringIO()
    Console(file=output, width=80).print(results_table(stored))
    assert "No pixel metrics: nut: the set has no masks." in output.getvalue()


def test_unified_fits_once_to_all_categories_together(tmp_path: Path) -> None:
    make_category(tmp_path / "bolt")
    make_category(tmp_path / "nut")
    method = Difference()
    results = evaluate(tmp_path, method, shots=2, seeds=(0, 1), unified=True, quiet=True)
    assert results["unified"] is True
    assert method.seeds == [0, 1]
    assert [len(support) for support in method.supports] == [4, 4]
    # The supports are those that a detector for each category would have had.
    alone = evaluate(tmp_path, Difference(), shots=2, seeds=(0, 1), quiet=True)
    for name, category in results["categories"].items():
        drawn = [run["support"] for run in category["per_seed"]]
        assert drawn == [run["support"] for run in alone["categories"][name]["per_seed"]]


def test_progress_goes_to_a_terminal_only_and_can_be_silenced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_category(tmp_path / "bolt")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    evaluate(root, Difference(), shots=1, seeds=(0,))
    assert capsys.readouterr() == ("", "")  # a log file wants no bar
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    evaluate(root, Difference(), shots=1, seeds=(0,))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "difference" in shown.err
    evaluate(root, Difference(), shots=1, seeds=(0,), quiet=True)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------- what the threshold catches


class AtThreshold(Difference):
    """With another threshold; squares of 250 on a ground of about 104 differ by about 146."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def fit(self, support: Sequence[Image], seed: int) -> FittedDifference:
        fitted = super().fit(support, seed)
        fitted.threshold = self.threshold
        return fitted


class WithoutThreshold(Difference):
    def fit(self, support: Sequence[Image], seed: int) -> Any:
        scored = super().fit(support, seed)

        class Fitted:
            score = staticmethod(scored.score)

        return Fitted()


def test_the_shipped_threshold_is_counted_by_kind_and_not_the_best_one(tmp_path: Path) -> None:
    """Two kinds of defect, of which a threshold of 90 sees the stronger alone."""
    root = make_category(tmp_path / "bolt", normal=6)
    rng = np.random.default_rng(5)
    for i in range(3):
        image = product(rng)
        image[10:14, 10:14] = 160
        write(root / f"test/faint/{i:03}.png", image)
    results = evaluate(root, AtThreshold(90.0), shots=3, seeds=(0, 1), quiet=True)
    assert results["mean"]["recall"] == 5 / 8
    assert results["mean"]["false_alarm_rate"] == 0
    assert results["mean"]["recall_at_5"] == 1.0  # the ranking is perfect
    kinds = results["kinds"]
    assert (kinds["faint"]["images"], kinds["faint"]["flagged"]) == (3, 0.0)
    assert kinds["faint"]["flagged_at_5"] == kinds["spot"]["flagged"] == 1.0
    assert kinds["good"] == kinds["good"] | {"images": 6, "is_defect": False, "flagged": 0.0}
    low, high = results["mean_ci"]["recall"]
    assert 0.3 < low < 5 / 8 < high < 0.9  # of 8 images, though two seeds looked at them
    output = StringIO()
    Console(file=output, width=80).print(threshold_table(results))
    shown = output.getvalue()
    assert "62.5 (30.6 to 86.3)" in shown
    assert "faint" in shown and "0.0 (0.0 to 56.1)" in shown
    assert "good flagged" in shown

    flagging = evaluate(root, AtThreshold(-1.0), shots=3, seeds=(0,), quiet=True)
    assert flagging["mean"]["false_alarm_rate"] == flagging["mean"]["recall"] == 1.0


def test_a_method_without_a_threshold_has_the_ranking_alone(tmp_path: Path) -> None:
    root = make_category(tmp_path / "bolt")
    results = evaluate(root, WithoutThreshold(), shots=3, seeds=(0,), quiet=True)
    assert results["mean"]["recall"] is None
    assert results["mean"]["recall_at_5"] == 1.0
    assert results["undefined"] == {"threshold": "the method has no threshold"}


def test_in_pairs_each_image_meets_the_threshold_of_its_own_template(tmp_path: Path) -> None:
    class ByBrightness(Difference):
        """Boards 0 and 1 get a threshold that their defects pass, 2 and 3 one that they do not."""

        def fit(self, support: Sequence[Image], seed: int) -> FittedDifference:
            fitted = super().fit(support, seed)
            fitted.threshold = 30.0 if support[0].mean() < 100 else 1000.0
            return fitted

    results = evaluate(make_pairs(tmp_path / "boards"), ByBrightness(), seeds=(0,), quiet=True)
    assert results["mean"]["recall"] == 0.5
    assert results["mean"]["false_alarm_rate"] is None


def make_deep(root: Path, white: int) -> Path:
    """The images of a category as a camera with this full scale writes them into 16 bits."""
    for path in [*root.rglob("train/**/*.png"), *root.rglob("test/**/*.png")]:
        image = cv2.imread(str(path))
        assert image is not None
        write(path, np.rint(image * (white / 255)).astype(np.uint16))
    return root


def test_sixteen_bit_images_are_read_with_the_white_level_of_their_supports(tmp_path: Path) -> None:
    make_category(tmp_path / "bolt")
    make_deep(make_category(tmp_path / "deep"), 4095)
    plain, deep = Difference(), Difference()
    expected = evaluate(tmp_path / "bolt", plain, shots=3, seeds=(0, 1), quiet=True)
    results = evaluate(tmp_path / "deep", deep, shots=3, seeds=(0, 1), quiet=True)
    assert (expected["white_level"], results["white_level"]) == (None, 4095)
    assert results["mean"] == expected["mean"]
    for one, other in zip(plain.supports, deep.supports, strict=True):
        assert np.array_equal(one, other)
    both = evaluate(tmp_path, Difference(), shots=3, seeds=(0,), quiet=True)
    levels = {name: body["white_level"] for name, body in both["categories"].items()}
    assert levels == {"bolt": None, "deep": 4095} and both["white_level"] is None
    one = evaluate(tmp_path, Difference(), shots=3, seeds=(0,), unified=True, quiet=True)
    assert one["white_level"] == one["categories"]["bolt"]["white_level"] == 4095
    dark = Difference()
    results = evaluate(tmp_path / "deep", dark, seeds=(0,), white_level=65535, quiet=True)
    assert results["white_level"] == 65535 and np.max(dark.supports[0]) < 20
    with pytest.raises(ValueError, match="white_level is 0"):
        evaluate(tmp_path / "deep", dark, white_level=0, quiet=True)


def test_pairs_have_the_white_level_of_their_templates(tmp_path: Path) -> None:
    root = make_pairs(tmp_path)
    for path in [*root.glob("te*/*.png")]:
        image = cv2.imread(str(path))
        assert image is not None
        write(path, np.rint(image * (4095 / 255)).astype(np.uint16))
    results = evaluate(root, Difference(), seeds=(0,), quiet=True)
    assert results["white_level"] == 4095 and results["mean"]["pixel_auroc"] == 1.0
