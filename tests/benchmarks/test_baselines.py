"""Each baseline does what its paper says, and the script that runs them loses nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not in the package

from benchmarks.accuracy import few_shot
from benchmarks.accuracy.baselines import PaDiM, PatchCore, PerPixel, ScratchAutoencoder
from benchmarks.accuracy.baselines.features import patch_features
from benchmarks.accuracy.baselines.imaging import to_batch
from benchmarks.accuracy.baselines.patchcore import greedy_coreset
from benchmarks.accuracy.baselines.thresholded import Thresholded
from benchmarks.accuracy.methods import CONTROL
from benchmarks.accuracy.methods import METHODS as METHODS_BY_NAME
from metaformer.detection.adaptation import prepare
from metaformer.evaluation.protocol import Method

Image = NDArray[np.uint8]

METHODS: list[Method] = [
    PerPixel(),
    PatchCore(),
    METHODS_BY_NAME[CONTROL](),
    PaDiM(),
    ScratchAutoencoder(steps=2, batch=1),
]


def product(seed: int) -> Image:
    """A blurred disc on a textured ground, 120 x 160."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (120, 160, 3), dtype=np.uint8)
    cv2.circle(image, (80, 60), 40, (170, 150, 60), -1)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), dtype=np.uint8)


def damaged(seed: int) -> Image:
    image = product(seed)
    cv2.line(image, (60, 45), (105, 70), (20, 20, 30), 6)
    return image


@pytest.fixture(scope="module")
def support() -> list[Image]:
    return [product(seed) for seed in range(3)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_scores_and_maps_have_the_promised_form(method: Method, support: list[Image]) -> None:
    other_size = np.ascontiguousarray(damaged(9)[:, 20:120])
    images = [product(8), damaged(9), other_size]
    together = method.fit(support, seed=0).score(images)
    for image, (score, anomaly_map) in zip(images, together, strict=True):
        assert isinstance(score, float)
        assert np.isfinite(score)
        assert anomaly_map.dtype == np.float32
        assert anomaly_map.shape == image.shape[:2]
        assert np.isfinite(anomaly_map).all()
    # Same seed, same result; and no image's score depends on the others in the batch.
    again = method.fit(support, seed=0)
    for image, (score, anomaly_map) in zip(images, together, strict=True):
        ((alone, alone_map),) = again.score([image])
        assert alone == pytest.approx(score, rel=1e-4)
        assert np.allclose(alone_map, anomaly_map, rtol=1e-3, atol=1e-5)
    json.dumps(method.settings)
    assert method.settings["resolution"] > 0


@pytest.mark.parametrize("method", METHODS[:4], ids=lambda method: method.name)
@pytest.mark.parametrize("shots", [1, 3])
def test_a_plain_defect_is_found_where_it_is(
    method: Method, shots: int, support: list[Image]
) -> None:
    fitted = method.fit(support[:shots], seed=0)
    (normal, _), (score, anomaly_map) = fitted.score([product(8), damaged(8)])
    assert score > normal
    y, x = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    assert 35 <= y <= 80
    assert 50 <= x <= 115


def test_autoencoder_learns_its_support_and_is_seeded(support: list[Image]) -> None:
    before = torch.get_rng_state()
    gaps = []
    for steps in (1, 20):
        fitted = ScratchAutoencoder(steps=steps, batch=1).fit(support[:1], seed=0)
        gaps.append(fitted.score(support[:1])[0][1].mean())
    assert gaps[1] < gaps[0] / 2
    assert torch.equal(before, torch.get_rng_state())  # leaves the caller's randomness alone
    other = ScratchAutoencoder(steps=1, batch=1).fit(support[:1], seed=1)
    assert other.score(support[:1])[0][1].mean() != gaps[0]


def test_per_pixel_with_one_image_trusts_no_single_pixel(support: list[Image]) -> None:
    deviation = PerPixel().fit(support[:1], seed=0).deviation
    assert np.ptp(deviation) == 0
    assert deviation.min() == pytest.approx(PerPixel().floor)


def test_patchcore_scores_a_support_image_as_normal(support: list[Image]) -> None:
    fitted = PatchCore().fit(support, seed=0)
    assert len(fitted.memory) == 3 * 28 * 28  # few images are kept whole
    own, new = fitted.score([support[0], damaged(0)])
    # torch.cdist loses about three digits near zero.
    assert own[1].max() < 0.05 * new[1].max()
    assert own[0] < 0.05 * new[0]


def test_patchcore_without_reweighting_is_the_worst_distance(support: list[Image]) -> None:
    image = damaged(5)
    weighted = PatchCore().fit(support, seed=0).score([image])[0][0]
    plain = PatchCore(neighbours=0).fit(support, seed=0).score([image])[0][0]
    memory = PatchCore().fit(support, seed=0).memory
    patches = patch_features(to_batch([image], 224), (8, 16), 3)[0].flatten(1).T
    distances = torch.linalg.vector_norm(patches[:, None] - memory[None, ::7], dim=2)
    assert plain <= distances.min(dim=1).values.max() * 1.01  # a part of the memory is no nearer
    assert 0 < weighted < plain


def test_coreset_covers_better_than_chance_and_is_seeded() -> None:
    generator = torch.Generator().manual_seed(0)
    # Four far clusters of very different sizes: chance would take all from the largest.
    sizes = (1000, 10, 10, 3)
    points = torch.cat(
        [
            torch.randn(size, 16, generator=generator) * 0.01 + 10 * torch.eye(16)[i]
            for i, size in enumerate(sizes)
        ]
    )
    chosen = greedy_coreset(points, 4, 16, torch.Generator().manual_seed(1))
    clusters = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))[chosen]
    assert sorted(clusters.tolist()) == [0, 1, 2, 3]
    assert torch.equal(chosen, greedy_coreset(points, 4, 16, torch.Generator().manual_seed(1)))


def test_large_support_is_reduced_to_a_coreset(support: list[Image]) -> None:
    method = PatchCore(coreset_above=1000, coreset=0.1)
    fitted = method.fit(support, seed=0)
    assert len(fitted.memory) == int(0.1 * 3 * 28 * 28)
    (normal, _), (score, _) = fitted.score([product(8), damaged(8)])
    assert score > normal


def test_padim_distance_is_mahalanobis(support: list[Image]) -> None:
    method = PaDiM(dimensions=6)
    fitted = method.fit(support, seed=0)
    image = damaged(4)
    channels = torch.randperm(152, generator=torch.Generator().manual_seed(0))[:6]
    features = [
        patch_features(to_batch([each], 224), (8, 16), 1)[0, channels, 10, 12].double().numpy()
        for each in [*support, image]
    ]
    covariance = np.cov(np.stack(features[:3]).T) + 0.01 * np.eye(6)
    gap = features[3] - np.mean(features[:3], axis=0)
    wanted = float(np.sqrt(gap @ np.linalg.inv(covariance) @ gap))
    position = 10 * 28 + 12
    whitened = torch.linalg.solve_triangular(
        fitted.factor[position],
        torch.tensor(gap, dtype=torch.float32)[:, None],
        upper=False,
    )
    assert torch.equal(fitted.channels, channels)
    assert float(whitened.norm()) == pytest.approx(wanted, rel=1e-3)


# ------------------------------------------------------------------------------------- the script


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "disc"
    for kind, images in {
        "train/good": [product(seed) for seed in range(5)],
        "test/good": [product(seed) for seed in range(10, 13)],
        "test/scratch": [damaged(seed) for seed in range(20, 23)],
    }.items():
        (folder / kind).mkdir(parents=True)
        for i, image in enumerate(images):
            cv2.imwrite(str(folder / kind / f"{i}.png"), image[:, :, ::-1])
    return folder


def test_script_writes_json_and_table_and_does_not_repeat_itself(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    command = [str(root), "--output", str(output), "--seeds", "0,1", "--quiet"]
    few_shot.main([*command, "--methods", "per-pixel", "--shots", "1"])
    first = json.loads(output.read_text())["results"]
    assert [(entry["data"], entry["preset"]) for entry in first] == [("disc", "per-pixel")]
    assert first[0]["mean"]["image_auroc"] == 1.0
    capsys.readouterr()

    few_shot.main([*command, "--methods", "per-pixel,patchcore", "--shots", "1,2"])
    assert [line.rpartition(", ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "2 of 4: disc, patchcore, 1 shots",
        "3 of 4: disc, per-pixel, 2 shots",
        "4 of 4: disc, patchcore, 2 shots",
    ]
    second = json.loads(output.read_text())["results"]
    assert second[0] == first[0]
    assert len(second) == 4
    table = output.with_suffix(".md").read_text()
    assert "| per-pixel | **100.0 ± 0.0** | **100.0 ± 0.0** |" in table
    assert "3 normal and 3 defective test images, 2 seeds." in table
    assert "No pixel metrics: the set has no masks." in table

    # Other seeds are another result, in the old one's place; so is one of an earlier version,
    # which measured less.
    few_shot.main([*command, "--seeds", "3", "--methods", "per-pixel", "--shots", "1"])
    third = json.loads(output.read_text())["results"]
    assert len(third) == 4
    assert [r["seeds"] for r in third if (r["preset"], r["shots"]) == ("per-pixel", 1)] == [[3]]
    for result in third:
        del result["mean"]["recall_at_5"]
    output.write_text(json.dumps({"results": third}))
    few_shot.main([*command, "--methods", "per-pixel", "--shots", "2"])
    (again,) = (
        r
        for r in json.loads(output.read_text())["results"]
        if (r["preset"], r["shots"]) == ("per-pixel", 2)
    )
    assert again["mean"]["recall_at_5"] == 1.0


def test_more_images_than_a_set_has_are_told_of_and_the_rest_is_measured(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    command = [str(root), "--output", str(output), "--seeds", "0", "--quiet"]
    few_shot.main([*command, "--methods", "per-pixel", "--shots", "1,10"])
    assert "disc: 5 normal images, so none with 10" in capsys.readouterr().out
    assert [r["shots"] for r in json.loads(output.read_text())["results"]] == [1]


def test_the_control_is_the_distance_to_the_nearest_of_all_patches(support: list[Image]) -> None:
    """Computed from the backbone's features alone, without the package's own search."""
    method = METHODS_BY_NAME[CONTROL]()
    fitted = method.fit(support[:1], seed=0)
    score, _ = fitted.score([damaged(8)])[0]
    preset = fitted.detector.model  # type: ignore[attr-defined]

    def rows(image: Image) -> torch.Tensor:
        features = prepare(preset, image).features
        grid = features[8].shape[2:]
        coarse = torch.nn.functional.interpolate(features[16], grid, mode="bilinear")
        joined = torch.cat([features[8], coarse], dim=1)
        pooled = torch.nn.functional.avg_pool2d(joined, 3, stride=1, padding=1)
        return pooled[0].flatten(1).T

    distances = torch.cdist(rows(damaged(8)), rows(support[0])).min(dim=1).values
    # The map is blurred a little before its maximum is taken.
    assert 0.7 * float(distances.max()) < score <= 1.001 * float(distances.max())


@pytest.mark.parametrize("shots", [1, 3])
def test_a_baseline_gets_a_threshold_that_good_images_stay_below(
    shots: int, support: list[Image]
) -> None:
    fitted = Thresholded(PatchCore(resolution=128)).fit(support[:shots], seed=0)
    (normal, _), (score, _) = fitted.score([product(8), damaged(8)])
    assert normal < fitted.threshold
    if shots > 1:  # views of one image differ by more than this scratch
        assert fitted.threshold <= score


def test_script_names_what_it_does_not_know(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--output", str(tmp_path / "a.json"), "--methods", "nope"], "unknown method 'nope'"),
        (["--output", str(tmp_path / "a.txt")], "must end in .json"),
        ([str(root), "--output", str(tmp_path / "a.json")], "same folder name"),
    ):
        with pytest.raises(SystemExit):
            few_shot.main([str(root), *arguments])
        assert message in capsys.readouterr().err
