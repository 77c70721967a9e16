from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metaformer.detection.feature.gap_distances import (
    core_map,
    grids,
    measure,
    measure_alone,
    nearest,
)
from metaformer.training.checkpoints import CheckpointError
from metaformer.training.transformer.config import TransformerTrainingConfig
from metaformer.training.transformer.losses import LevelLogit, image_loss, pixel_loss
from metaformer.training.transformer.train import WEIGHTS, new_transformer, train_transformer


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for folder in ("texture/Brick", "texture/Wood", "clothing/hat", "clothing/shirt"):
        for photo in range(3):
            path = root / folder / f"{photo}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)
            assert cv2.imwrite(str(path), cv2.resize(coarse, (160, 160)))
    return root


def config(photos: Path, output: Path, pairs: int) -> TransformerTrainingConfig:
    return TransformerTrainingConfig(
        photos, output, pairs=pairs, exports=(16,), meta_batch=1, log_every=1, warm_up=1
    )


def test_a_resumed_training_ends_where_an_unbroken_one_does(photos: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train_transformer(config(photos, whole, 32), quiet=True)
    train_transformer(config(photos, halves, 16), quiet=True)
    train_transformer(config(photos, halves, 32), resume=True, quiet=True)
    one, other = load_file(whole / WEIGHTS), load_file(halves / WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    start = new_transformer().state_dict()
    assert not torch.equal(one["out.weight"], start["out.weight"])
    early = load_file(whole / "gap_transformer-0000016.safetensors")
    assert not torch.equal(early["out.weight"], one["out.weight"])
    steps = [json.loads(x)["step"] for x in (halves / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_nothing_to_resume_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        train_transformer(config(photos, tmp_path, 16), resume=True, quiet=True)


@pytest.mark.parametrize("change", [{"pairs": 0}, {"average": 1.0}, {"unknown": 3}])
def test_a_wrong_configuration_names_what_is_wrong(tmp_path: Path, change: dict[str, int]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"data": "a", "output": "b", **change}))
    with pytest.raises(ValueError, match=next(iter(change)) if "pairs" in change else None):
        TransformerTrainingConfig.from_yaml(path)


def test_distances_are_those_of_a_plain_search() -> None:
    made = torch.Generator().manual_seed(0)
    rows, memory = torch.randn(70, 6, generator=made), torch.randn(40, 6, generator=made)
    euclidean, direction = nearest(rows, memory, direction=True)
    torch.testing.assert_close(euclidean, torch.cdist(rows, memory).amin(1), atol=1e-4, rtol=1e-4)
    cosines = (
        torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(memory, dim=1).T
    )
    torch.testing.assert_close(direction, 1 - cosines.amax(1), atol=1e-5, rtol=1e-5)


def test_an_image_is_at_no_distance_from_itself_and_at_some_from_the_rest_of_it() -> None:
    made = torch.Generator().manual_seed(0)
    sizes = {8: (40, 16), 16: (112, 8), 32: (192, 4)}
    image = {s: torch.randn(1, c, n, n, generator=made) for s, (c, n) in sizes.items()}
    own = grids(image)
    distances, core = measure(own, own, torch.Generator())
    assert distances.shape == (1, 7, 16, 16)
    assert distances.max() < 1e-2
    torch.testing.assert_close(core, core_map(distances))
    alone, core_alone = measure_alone(own)
    assert alone.min() > 0.02
    assert (core_alone > core).all()


def test_a_small_defect_counts_as_much_as_a_large_one() -> None:
    """Each image's anomalous cells are averaged before images are."""
    logits = torch.zeros(2, 8, 8)
    shares = torch.zeros(2, 8, 8)
    shares[0, :4] = 1.0
    shares[1, 0, 0] = 1.0
    found_small = logits.clone()
    found_small[1, 0, 0] = 5.0
    found_large = logits.clone()
    found_large[0, :4] = 5.0
    before = pixel_loss(logits, shares)
    gains = [float(before - pixel_loss(x, shares)) for x in (found_small, found_large)]
    assert gains[0] == pytest.approx(gains[1], rel=1e-4)
    assert gains[0] > 0.1


def test_a_defect_smaller_than_a_cell_still_counts() -> None:
    shares = torch.zeros(1, 8, 8)
    shares[0, 2, 2] = 0.05
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    pixel_loss(logits, shares).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2, 2] < 0
    assert logits.grad[0, 5, 5] > 0


def test_the_order_of_images_is_what_counts() -> None:
    clean = torch.tensor([True, False])
    right, wrong = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    assert image_loss(right, clean) < 0.01 < 1 < image_loss(wrong, clean)
    assert LevelLogit()(torch.tensor(1.0)) > LevelLogit()(torch.tensor(0.0))
