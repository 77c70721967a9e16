"""Plain pre-training of A: it learns, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from metaformer.training.universal.pretrain_autoencoder import (
    PretrainConfig,
    box_ssim,
    draw_products,
    learning_rate,
    pretrain_autoencoder,
)


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        colour = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(colour).resize((200, 150)).save(photos / f"{i}.png")
    return PretrainConfig(
        data=photos,
        output=tmp_path / "run",
        products=2,
        views=2,
        steps=4,
        warm_up=1,
        log_every=1,
        checkpoint_every=2,
        bfloat16=False,
    )


def test_resumed_run_equals_the_uninterrupted_one(config: PretrainConfig, tmp_path: Path) -> None:
    whole = load_file(pretrain_autoencoder(config))
    # Stopped after two of the same four steps: the schedule is that of four.
    split = replace(config, output=tmp_path / "split")
    interrupted = replace(split, checkpoint_every=2)

    class StopError(Exception):
        pass

    import metaformer.training.universal.pretrain_autoencoder as module

    real, calls = module.draw_products, 0

    def stopping(*args: object) -> list[torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StopError
        return real(*args)  # type: ignore[arg-type]

    module.draw_products = stopping  # type: ignore[assignment]
    try:
        with pytest.raises(StopError):
            pretrain_autoencoder(interrupted)
    finally:
        module.draw_products = real
    pieces = load_file(pretrain_autoencoder(split, resume=True))
    assert whole.keys() == pieces.keys()
    for name in whole:
        assert torch.equal(whole[name], pieces[name]), name


def test_log_and_record(config: PretrainConfig) -> None:
    path = pretrain_autoencoder(config)
    lines = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert load_file(path)["encoder_convs.0.weight"].dtype == torch.float16


def test_products_depend_on_seed_and_step_alone(config: PretrainConfig) -> None:
    photos = sorted(config.data.iterdir())
    first, again = draw_products(photos, config, 5), draw_products(photos, config, 5)
    other = draw_products(photos, config, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2, 3, 128, 128)
    assert -1 <= first[0].min() <= first[0].max() <= 1


def test_learning_rate_warms_up_and_ends_at_zero(config: PretrainConfig) -> None:
    longer = replace(config, steps=100, warm_up=10)
    rates = [learning_rate(step, longer) for step in range(101)]
    assert rates[0] == pytest.approx(longer.learning_rate / 10)
    assert max(rates) == pytest.approx(longer.learning_rate)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_ssim_of_an_image_with_itself_is_one_and_falls_with_noise() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert box_ssim(image, image).mean() == pytest.approx(1, abs=1e-5)
    noise = torch.randn_like(image)
    values = [float(box_ssim(image, image + s * noise).mean()) for s in (0.1, 0.5, 2.0)]
    assert 1 > values[0] > values[1] > values[2]


def test_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: a\noutput: b\nstesp: 3\n")
    with pytest.raises(ValueError, match=r"unknown key 'stesp'\. Did you mean 'steps'\? Known: "):
        PretrainConfig.from_yaml(path)
