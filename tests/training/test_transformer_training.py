from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from metaformer.detection.feature.gap_correction import new_transformer
from metaformer.detection.feature.gap_distances import (
    OF_AUTOENCODER,
    OF_BACKBONE,
    Readings,
    core_map,
    measure_alone,
    measure_to,
    nearest,
    some_patches,
)
from metaformer.networks.feature_maps import GAP, RESPONSE
from metaformer.training.checkpoints import CheckpointError
from metaformer.training.episodes.change_episodes import ChangeConfig
from metaformer.training.transformer.config import TransformerTrainingConfig
from metaformer.training.transformer.losses import LevelLogit, image_loss, pixel_loss
from metaformer.training.transformer.train import WEIGHTS, start_from, train_transformer


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


def config(photos: Path, output: Path, pairs: int, **changes: Any) -> TransformerTrainingConfig:
    return TransformerTrainingConfig(
        photos, output, pairs=pairs, exports=(16,), meta_batch=1, log_every=1, warm_up=1, **changes
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


def test_weights_that_fit_another_backbone_are_taken_and_the_correction_begins_at_zero() -> None:
    torch.manual_seed(0)
    start = new_transformer(OF_BACKBONE)
    nn.init.normal_(start.out.weight)
    assert start.out.bias is not None
    nn.init.normal_(start.out.bias)
    transformer = new_transformer(OF_AUTOENCODER)
    before = {name: t.clone() for name, t in transformer.state_dict().items()}
    start_from(transformer, start.state_dict())
    taken = set()
    for name, tensor in transformer.state_dict().items():
        given = start.state_dict()[name]
        if name.startswith("out.") or given.shape != tensor.shape:
            assert torch.equal(tensor, before[name]), name
        else:
            assert torch.equal(tensor, given), name
            taken.add(name)
    assert {"attention.to_qkv.weight", "out_conv.weight", "rebuild.8.raw_trust"} <= taken
    assert taken.isdisjoint({"gap.8.weight", "fine_in.weight", "coarse_in.weight"})
    assert not any(parameter.any() for parameter in transformer.out.parameters())


def test_the_transformer_of_the_pixel_preset_is_trained_from_the_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ChangeConfig(sides=(128,), shots=(2,))
    monkeypatch.setattr("metaformer.training.transformer.train.ChangeConfig", lambda: small)
    torch.manual_seed(0)
    other = new_transformer(OF_BACKBONE)
    nn.init.normal_(other.out.weight)
    start = tmp_path / "start.safetensors"
    save_file(other.state_dict(), start)
    train_transformer(config(photos, tmp_path, 8, preset="pixel", start=start), quiet=True)
    (line,) = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["step"] == 1
    assert line["size"] == 0 and line["image"] == line["image_before"], "it begins at zero"
    trained = load_file(tmp_path / WEIGHTS)
    own = new_transformer(OF_AUTOENCODER).state_dict()
    assert {name: t.shape for name, t in trained.items()} == {n: t.shape for n, t in own.items()}
    assert trained["out.weight"].any()
    kept = other.attention.to_qkv.weight.detach()
    torch.testing.assert_close(trained["attention.to_qkv.weight"], kept, rtol=0, atol=0.01)
    card = json.loads((tmp_path / "gap_transformer.json").read_text())
    assert card["training"]["preset"] == "pixel"
    assert card["training"]["start"] == "start.safetensors"


def test_the_response_map_is_read_where_it_is_asked_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ChangeConfig(sides=(128,), shots=(2,))
    monkeypatch.setattr("metaformer.training.transformer.train.ChangeConfig", lambda: small)
    strength = "attention.raw_strength"  # of the response map in attention
    before = new_transformer(OF_BACKBONE).state_dict()[strength]
    for response in (False, True):
        out = tmp_path / str(response)
        train_transformer(config(photos, out, 32, response=response), quiet=True)
        assert (load_file(out / WEIGHTS)[strength] != before).item() == response


@pytest.mark.parametrize(
    "change", [{"pairs": 0}, {"average": 1.0}, {"preset": "sift"}, {"unknown": 3}]
)
def test_a_wrong_configuration_names_what_is_wrong(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"data": "a", "output": "b", **change}))
    with pytest.raises(ValueError, match=next(iter(change))):
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


def features_of(readings: Readings, seed: int = 0) -> dict[int, torch.Tensor]:
    """Of a random image of 128 pixels."""
    made = torch.Generator().manual_seed(seed)
    channels = {4: 64, 8: readings.channels[8], 16: readings.channels[16], 32: 192}
    found = {s: torch.randn(1, channels[s], 128 // s, 128 // s, generator=made) for s in channels}
    return found | {
        GAP: torch.rand(1, 4, 32, 32, generator=made),
        RESPONSE: torch.rand(1, 1, 16, 16, generator=made),
    }


@pytest.mark.parametrize("readings", [OF_BACKBONE, OF_AUTOENCODER])
def test_an_image_is_at_no_distance_from_itself_and_at_some_from_the_rest_of_it(
    readings: Readings,
) -> None:
    image = features_of(readings)
    own = readings.grids(image)
    assert own.keys() == {"p", "8", "16", str(readings.third)}
    memory = {name: grid[0].flatten(1).T for name, grid in own.items()}
    distances, core = readings.together(measure_to(own, memory), image)
    named = len(readings.distances)
    assert named == 7 and distances.shape == (1, 7 + readings.gaps, 16, 16)
    assert distances[:, :named].max() < 1e-2
    torch.testing.assert_close(core, core_map(distances, readings.cosine_share))
    alone, core_alone = readings.together(measure_alone(own), image)
    assert alone[:, :named].min() > 0.02
    assert (core_alone > core).all()
    if readings.gaps:  # they follow the distances, and are the image's own
        shrunk = torch.nn.functional.interpolate(image[GAP], (16, 16), mode="bilinear")
        for found in (distances, alone):
            torch.testing.assert_close(found[:, named:], shrunk)


def test_known_distances_are_taken_as_they_are_and_the_others_measured() -> None:
    query, other = features_of(OF_AUTOENCODER, 1), features_of(OF_AUTOENCODER, 2)
    memory = some_patches(OF_AUTOENCODER.grids(other), torch.Generator().manual_seed(0))
    assert {name: len(rows) for name, rows in memory.items()} == {
        "p": 256, "8": 256, "16": 64, "4": 256,
    }  # fmt: skip
    measured = measure_to(OF_AUTOENCODER.grids(query), memory)
    assert measured.keys() == set(OF_AUTOENCODER.distances)
    known = {name: torch.full_like(measured[name], 0.5) for name in ("p", "c8", "c16")}
    found = measure_to(OF_AUTOENCODER.stride_grids(query), memory, known)
    assert found.keys() == measured.keys()
    for name, grid in found.items():
        assert torch.equal(grid, known.get(name, measured[name])), name


def test_the_share_of_the_cosine_distance_is_its_exponent() -> None:
    distances = torch.rand(1, 7, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    pooled, cosine = distances[:, :1], (distances[:, 1:2] + 2 * distances[:, 2:3]) / 3
    torch.testing.assert_close(core_map(distances, 0.0), pooled, rtol=0, atol=2e-3)
    torch.testing.assert_close(core_map(distances, 1.0), cosine, rtol=0, atol=2e-3)
    expected = (pooled * cosine).sqrt()
    torch.testing.assert_close(core_map(distances, 0.5), expected, rtol=0, atol=2e-3)


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
