"""The rule passes over what loses on a set, and the command measures real sets from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not in the package

from benchmarks.ablations import transformer
from benchmarks.ablations.leave_one_product_out import Results, Row, SampledTests


def results_of(changes: dict[str, dict[str, tuple[float, float]]]) -> Results:
    """Candidate -> set -> change of pixel AP and of image AUROC, around 0.5."""
    results: Results = {}
    for candidate, of_sets in changes.items():
        for name, (pixel_ap, image_auroc) in of_sets.items():
            score: Row = {"image_auroc": 0.5 + image_auroc, "caught_at_5": 0.5}
            marked: Row = {"pixel_ap": 0.5 + pixel_ap, "aupro": 0.5}
            of_set = results.setdefault(name, {}).setdefault("1", {})
            if candidate == transformer.OFF:
                of_set[candidate] = [marked | score]
            else:
                of_set[candidate] = [marked]
                of_set[f"{candidate}, {transformer.HIGHEST}"] = [score]
    return results


def test_the_rule_takes_the_largest_gain_that_loses_on_no_set() -> None:
    results = results_of(
        {
            "off": {"a": (0.0, 0.0), "b": (0.0, 0.0), "c": (0.0, 0.0)},
            "bold": {"a": (0.3, 0.1), "b": (0.3, 0.1), "c": (-0.1, -0.1)},
            "wary": {"a": (0.1, -0.1), "b": (0.1, 0.1), "c": (0.1, 0.1)},
        }
    )
    pixels = transformer.decide(results)["pixels"]
    assert pixels["none"]["chosen"] == "wary"  # bold loses on c
    assert pixels["c"]["chosen"] == "bold"  # unless c is the set left out
    assert pixels["c"]["changes"]["pixel_ap"] == pytest.approx(-0.1)
    for by_candidate in results.values():  # within half the spread of supports is no loss
        row = by_candidate["1"]["off"][0]
        by_candidate["1"]["off"] = [row | {"pixel_ap": 0.5 + apart} for apart in (-0.3, 0.3)]
    assert transformer.decide(results)["pixels"]["none"]["chosen"] == "bold"
    score = transformer.decide(results)["score"]
    assert score["none"]["chosen"] == "off"  # each loses on a set
    assert score["a"]["chosen"] == f"wary, {transformer.HIGHEST}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets of plates with holes: one with masks, one without."""
    for name in ("masked", "unmasked"):
        for kind, first in (("train/good", 0), ("test/good", 10), ("test/hole", 20)):
            (tmp_path / name / kind).mkdir(parents=True)
            for i in range(3):
                rng = np.random.default_rng(first + i)
                image = np.full((64, 96, 3), 60, np.uint8)
                image[16:48, 20:76] = rng.integers(120, 200, (32, 56, 3))
                if kind == "test/hole":
                    cv2.circle(image, (40, 32), 9, (255, 0, 0), -1)
                cv2.imwrite(str(tmp_path / name / kind / f"{i}.png"), image)
        if name == "masked":
            folder = tmp_path / name / "ground_truth" / "hole"
            folder.mkdir(parents=True)
            mask = cv2.circle(np.zeros((64, 96), np.uint8), (40, 32), 9, 255, -1)
            for i in range(3):
                cv2.imwrite(str(folder / f"{i}_mask.png"), mask)
    return tmp_path


def test_one_command_measures_and_writes_both_files(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "transformer.json"
    sets = ["--sets", "masked", "unmasked", "--sizes", "0", "0.25"]
    weights = Path(transformer.__file__).parents[2] / "src/metaformer/networks/weights"
    again = f"again={weights / 'gap_transformer.safetensors'}"
    arguments = ["transformer", str(data), again, *sets, "--quick", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    transformer.main()
    content = json.loads(output.read_text())
    assert content["weights"] == ["shipped", "again"]
    rows = content["results"]["masked"]["1"]
    assert set(rows["off"][0]) == {"image_auroc", "caught_at_5", "pixel_ap", "aupro"}
    assert rows["shipped x 0.25"] == rows["again x 0.25"] != rows["off"]
    assert "pixel_ap" not in content["results"]["unmasked"]["1"]["shipped x 0.25"][0]
    assert set(content["decided"]["pixels"]) == {"masked", "none"}
    table = output.with_suffix(".md").read_text()
    assert "| shipped x 0.25, mean log |" in table and "nan" not in table


def test_a_small_defect_is_not_lost_on_the_square_that_maps_are_judged_on(data: Path) -> None:
    preset = transformer.FeaturePreset.of(transformer.FeatureConfig())
    pit = np.zeros((64, 96), np.uint8)
    pit[30, 40] = 255
    for i in range(3):
        cv2.imwrite(str(data / "masked" / "ground_truth" / "hole" / f"{i}_mask.png"), pit)
    tests = SampledTests(preset, data / "masked", side=16)
    assert [mask.sum() for mask in tests.masks if mask is not None] == [0, 0, 0, 1, 1, 1]


def test_weights_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    for given in ("no-label.safetensors", "shipped=x", f"5000={tmp_path / 'other.safetensors'}"):
        with pytest.raises(SystemExit, match=given.rpartition("=")[2]):
            transformer.load_networks([given])
