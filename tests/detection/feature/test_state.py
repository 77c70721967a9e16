"""Detector files of the feature preset: this version's, earlier ones, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file

from metaformer import Detector, DetectorFileError
from metaformer.detection.feature.state import restore
from metaformer.detection.preprocessing import to_tensor
from metaformer.detection.scoring.anomaly_map import image_score, smooth
from metaformer.networks.efficientnet import load_backbone
from tests.helpers import boards

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN, ALIGNED = (8, 16), (4, 8)
Image = NDArray[np.uint8]


def features(image: Image, levels: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """Level -> (C, h, w) of unit length, standardised as version 1 did it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    network = load_backbone(16, input_mean=(0.0, 0.0, 0.0), input_std=(1.0, 1.0, 1.0))
    with torch.inference_mode():
        found = network((to_tensor(image, (96, 96)) - mean) / std)
    return {level: F.normalize(found[level], dim=1)[0] for level in levels}


def version_1(images: list[Image], *, aligned: bool = False, **config: Any) -> tuple[Any, Any]:
    """Tensors and settings as version 1 wrote them."""
    levels = ALIGNED if aligned else PLAIN
    kept = [features(image, levels) for image in images]
    tensors = {}
    for level in levels:
        grids = [each[level] for each in kept]
        tensors[f"grids.{level}"] = torch.tensor([list(grid.shape[1:]) for grid in grids])
        if aligned:
            tensors[f"memory.{level}"] = torch.stack(grids).contiguous()
        else:
            rows = [grid.flatten(1).T for grid in grids]
            tensors[f"memory.{level}"] = torch.cat(rows).contiguous()
    settings = {
        "resolution": 96,
        "usual_side": None,
        "size_kept": 0.0,
        "shared_areas": [],
        "levels": list(levels),
        "level_weights": [1.0, 1.0] if aligned else [0.5, 1.0],
        "learned": False,
        "maps": [{"pooled": 0.5, "wide": 0.0, "part": 0.1, "context": 0.0, "here": 0.2}],
        "transformer": False,
        "aligned": aligned,
        "reach": 8,
        "max_tokens": 20_000,
        "compared_tokens": 2_000,
        "means": False,
        "averaged_tokens": 8_192,
        "places": 16,
        "own": 0.0,
        "score_share": 0.01,
        "sigma": 1.0,
    }
    return tensors, {"config": settings | config, "images": len(images)}


def write(path: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> Path:
    count = settings["images"]
    header = {
        "format": "metaformer-detector",
        "format_version": 1,
        "made": {
            "preset": "feature",
            "seed": 0,
            "white_level": 65535,
            "support": [{"name": f"image {i}", "sha256": f"{i:064x}"} for i in range(count)],
            "support_scores": [
                {"index": i, "raw_score": 0.1 + 0.01 * i, "is_odd": False} for i in range(count)
            ],
            "made": "2026-01-01T00:00:00+00:00",
            "versions": {"metaformer-ad": "0.1.0", "torch": "2.8.0", "python": "3.11.7"},
        },
        "settings": settings,
        "calibration": {
            "normal_scores": [0.1 + 0.01 * i for i in range(count)],
            "false_alarm_rate": 0.05,
            "threshold": 0.2,
            "pixel_threshold": 0.15,
            "rule": "tail",
        },
    }
    save_file(tensors, path, metadata={"metaformer": json.dumps(header)})
    return path


def expected_map(image: Image, support: list[Image], *, aligned: bool = False) -> torch.Tensor:
    """Mean of 1 - cosine to the nearest of the support, by every pair of patches."""
    levels, weights = (ALIGNED, (1.0, 1.0)) if aligned else (PLAIN, (0.5, 1.0))
    asked, known = features(image, levels), [features(each, levels) for each in support]
    total = torch.zeros(96 // levels[0], 96 // levels[0])
    for level, weight in zip(levels, weights, strict=True):
        side = 96 // level
        cells = torch.stack([each[level].flatten(1) for each in known])  # (K, C, h * w)
        cosine = torch.einsum("cq,kcm->qkm", asked[level].flatten(1), cells)
        if aligned:
            place = torch.arange(side)
            near = (place[:, None] - place[None]).abs() <= max(1, 8 // level)
            both = (near[:, None, :, None] & near[None, :, None, :]).reshape(side**2, side**2)
            cosine = cosine.masked_fill(~both[:, None], -1.0)
        nearest = (1 - cosine.amax((1, 2))).clamp_min(0).reshape(1, 1, side, side)
        total += weight * F.interpolate(nearest, total.shape, mode="bilinear")[0, 0]
    return smooth((total / sum(weights))[None], 1.0)[0]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_a_file_of_version_1_scores_as_it_did(tmp_path, aligned, count):
    """1 - cosine to the nearest patch, on pixels standardised by ImageNet's mean and deviation."""
    support = [boards.good(seed) for seed in range(count)]
    detector = Detector.load(
        write(tmp_path / "old.metaformer", *version_1(support, aligned=aligned))
    )
    for image in (boards.defective(50), boards.good(60)):
        expected = expected_map(image, support, aligned=aligned)
        raw = detector.predict(image).raw_score
        assert raw == pytest.approx(image_score(expected, 0.01), rel=1e-4)
        # Without ImageNet's values it would be another score.
        assert raw > 0.01
    assert detector.calibration.threshold == 0.2


def test_other_standardisation_would_give_other_scores():
    """So that the test above cannot pass on the present input."""
    network = load_backbone(16)
    with torch.inference_mode():
        present = network(to_tensor(boards.defective(50), (96, 96)))
    old = features(boards.defective(50), PLAIN)
    for level, grid in old.items():
        cosine = (F.normalize(present[level], dim=1)[0] * grid).sum(0)
        assert float(cosine.mean()) < 0.97


def test_a_file_of_version_1_compared_with_a_part_of_many(tmp_path):
    """The same random part: seed 0, sorted."""
    support = [boards.good(seed) for seed in range(3)]
    tensors, settings = version_1(support, compared_tokens=100)
    adapted = Detector.load(write(tmp_path / "old", tensors, settings)).adapted
    for level in ("8", "16"):
        rows = tensors[f"memory.{level}"]
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:100]
        torch.testing.assert_close(
            adapted.compare.search[level].columns.T, rows[drawn.sort().values]
        )


@pytest.mark.parametrize("aligned", [False, True])
def test_a_file_of_version_1_can_be_extended_and_is_then_of_version_2(tmp_path, aligned):
    support = [boards.good(seed) for seed in range(3)]
    old = Detector.load(write(tmp_path / "old", *version_1(support, aligned=aligned)))
    assert old.adapted.is_whole
    extended = old.extended_with([boards.good(3)])
    assert extended.provenance["additions"][0]["calibration"] == "recomputed"
    extended.save(tmp_path / "new")
    again = Detector.load(tmp_path / "new")
    assert again.info()["settings"]["version"] == 2
    image = boards.defective(50)
    assert again.predict(image).raw_score == extended.predict(image).raw_score
    expected = expected_map(image, [*support, boards.good(3)], aligned=aligned)
    assert again.predict(image).raw_score == pytest.approx(image_score(expected, 0.01), rel=1e-4)


def test_a_file_of_version_1_whose_memory_was_cut_is_extended_by_estimate(tmp_path):
    """It does not tell images apart."""
    support = [boards.good(seed) for seed in range(3)]
    tensors, settings = version_1(support)
    cut = {name: rows for name, rows in tensors.items() if not name.startswith("grids")}
    detector = Detector.load(write(tmp_path / "old", cut, settings))
    image = boards.defective(50)
    expected = image_score(expected_map(image, support), 0.01)
    assert detector.predict(image).raw_score == pytest.approx(expected, rel=1e-4)
    extended = detector.extended_with([boards.good(3), boards.good(4)])
    assert extended.provenance["additions"][0]["calibration"] == "estimated"
    assert extended.predict(image).raw_score <= detector.predict(image).raw_score + 1e-6


def test_the_oldest_files_of_version_1_name_fewer_settings(tmp_path):
    support = [boards.good(seed) for seed in range(2)]
    tensors, settings = version_1(support)
    known = {"resolution", "levels", "level_weights", "aligned", "reach", "max_tokens"}
    settings["config"] = {k: v for k, v in settings["config"].items() if k in known}
    settings["config"] |= {"score_share": 0.01, "sigma": 1.0}
    detector = Detector.load(write(tmp_path / "old", tensors, settings))
    image = boards.defective(50)
    expected = image_score(expected_map(image, support), 0.01)
    assert detector.predict(image).raw_score == pytest.approx(expected, rel=1e-4)


def test_a_file_with_the_learned_metric_is_refused_and_says_what_to_do(tmp_path):
    tensors, settings = version_1([boards.good(0), boards.good(1)], learned=True)
    path = write(tmp_path / "learned.metaformer", tensors, settings)
    with pytest.raises(DetectorFileError, match=r"learned\.metaformer.*adapt again"):
        Detector.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"grids.8": torch.full((2, 2), 13)}, r"grids\.8", id="other grids"),
        pytest.param({"memory.16": torch.zeros(72, 111)}, "needed is", id="other width"),
        pytest.param({"memory.8": None}, r"memory\.8", id="no memory"),
    ],
)
def test_a_damaged_file_of_version_1_is_refused(tmp_path, change, message):
    tensors, settings = version_1([boards.good(0), boards.good(1)])
    tensors = {n: t for n, t in {**tensors, **change}.items() if t is not None}
    with pytest.raises(DetectorFileError, match=message):
        Detector.load(write(tmp_path / "odd", tensors, settings))


# This version


def state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    adapted = boards.detector().adapted
    return adapted.state()


def test_the_state_of_a_whole_support_is_its_features():
    tensors, settings = state()
    kept = {name.split(".")[0] for name in tensors}
    assert kept == {"support", "mirrored", "frame", "transformer", "seen"}
    assert tensors["support.2.16"].shape == (1, 112, 6, 6)
    assert tensors["support.2.32"].shape == (1, 192, 3, 3)  # which the transformer reads
    assert settings["version"] == 2 and settings["images"] == 3
    assert settings["config"]["input_mean"] == (127 / 255,) * 3
    assert not [key for key in settings["config"] if "backbone" in key]


@pytest.mark.parametrize("images", [0, -1, "3", None, 2])
def test_a_number_of_images_that_does_not_fit_is_refused(images):
    tensors, settings = state()
    with pytest.raises(ValueError, match=r"needed|missing"):
        restore(tensors, {**settings, "images": images})


@pytest.mark.parametrize("version", [0, 3, "2"])
def test_another_version_is_refused(version):
    tensors, settings = state()
    with pytest.raises(ValueError, match=f"version {version}"):
        restore(tensors, {**settings, "version": version})


def test_a_missing_level_of_an_image_is_named():
    tensors, settings = state()
    with pytest.raises(KeyError, match=r"support\.1\.16"):
        restore({n: t for n, t in tensors.items() if n != "support.1.16"}, settings)


def test_a_bank_without_owners_is_refused():
    tensors, settings = state()
    frame = {name: tensor for name, tensor in tensors.items() if name.startswith("frame.")}
    rows = {"bank.8": torch.zeros(5, 40), "owners.8": torch.zeros(4, dtype=torch.long)}
    with pytest.raises(ValueError, match="not every row"):
        restore(frame | rows, settings)
    with pytest.raises(ValueError, match="memory bank is missing"):
        restore(frame, settings)
