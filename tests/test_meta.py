"""The inner loop of MAML: its gradients are right, and it changes nothing it should not."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from metaformer.autoencoder import Autoencoder, AutoencoderConfig
from metaformer.training.inner_loop import (
    InnerRates,
    adapt,
    adaptation_gain,
    outer_loss,
    reconstruct,
    step_weights,
)
from metaformer.training.meta import WEIGHTS, MetaConfig, meta_train


def images(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 128, 128, generator=generator, dtype=dtype) * 2 - 1


def autoencoder(norm: str = "support") -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(norm=norm))  # type: ignore[arg-type]


def test_outer_gradient_is_the_finite_difference_of_second_order_and_not_of_first() -> None:
    model = autoencoder().double()
    rates = InnerRates(model, steps=1, inner_lr=0.5).double()
    support, query = images(1, 1, torch.float64), images(1, 2, torch.float64)
    weight = model.decoder_convs[3].weight
    direction = torch.randn(
        weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    direction /= direction.norm()

    def loss(second_order: bool) -> Tensor:
        return outer_loss(model, rates, support, query, second_order=second_order, weights=[1.0])

    slopes = {
        order: float((torch.autograd.grad(loss(order), weight)[0] * direction).sum())
        for order in (True, False)
    }
    eps = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * eps * direction
        values.append(float(loss(False).detach()))
        with torch.no_grad():
            weight -= sign * eps * direction
    numeric = (values[0] - values[1]) / (2 * eps)

    assert slopes[True] == pytest.approx(numeric, rel=1e-4)
    assert abs(slopes[False] - numeric) > 1e-2 * abs(numeric)


def test_inner_rates_learn() -> None:
    model = autoencoder()
    rates = InnerRates(model, steps=2, inner_lr=0.01)
    outer_loss(
        model, rates, images(1, 1), images(1, 2), second_order=False, weights=[0.5, 0.5]
    ).backward()
    assert rates.rates.grad is not None
    assert (rates.rates.grad != 0).all()


def test_rate_zero_changes_no_bit() -> None:
    model = autoencoder()
    support, query = images(2, 1), images(1, 2)
    fast = adapt(model, InnerRates(model, 2, 0.0), support, second_order=False).weights[-1]
    with torch.no_grad():
        expected = model(query, model.support_moments(support))
        assert torch.equal(reconstruct(model, fast, support, query), expected)


@pytest.mark.parametrize("norm", ["support", "group"])
def test_an_evaluation_episode_leaves_everything_as_it_was(norm: str) -> None:
    model = autoencoder(norm)
    rates = InnerRates(model, steps=2, inner_lr=1e-4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    support = images(1, 1)
    start, end = adaptation_gain(model, rates, support, support)
    assert end < start, "the steps must lower the loss on what they were taken on"
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, buffers[n]) for n, t in model.named_buffers())
    assert all(p.grad is None for p in [*model.parameters(), *rates.parameters()])


def test_moments_come_from_the_fast_weights() -> None:
    model = autoencoder()
    support, query = images(2, 1), images(1, 2)
    fast = adapt(model, InnerRates(model, 1, 0.1), support, second_order=False).weights[-1]
    moved = autoencoder()
    moved.load_state_dict(fast)
    with torch.no_grad():
        expected = moved(query, moved.support_moments(support))
        torch.testing.assert_close(reconstruct(model, fast, support, query), expected)
        stale = moved(query, model.support_moments(support))
    assert (stale - expected).abs().max() > 1e-3


def test_weights_of_the_steps_go_from_even_to_the_last() -> None:
    assert step_weights(4, 0) == pytest.approx([0.25] * 4)
    assert step_weights(4, 2) == pytest.approx([0.0075] * 3 + [0.9775])
    assert step_weights(1, 0.5) == pytest.approx([1.0])


# Meta-training


@pytest.fixture
def config(tmp_path: Path) -> MetaConfig:
    rng = np.random.default_rng(0)
    for kind, photo in itertools.product(("Wood", "Rock", "Sand", "Brick"), range(3)):
        path = tmp_path / "photos" / "texture" / kind / f"{photo}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grain = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(grain).resize((320, 320)).save(path)
    return MetaConfig(
        data=tmp_path / "photos",
        output=tmp_path / "run",
        shots=(1,),
        queries=(1, 1),
        meta_batch=2,
        steps=2,
        inner_steps=1,
        first_order_share=0.5,
        validate_every=2,
        validation_episodes=2,
        checkpoint_every=1,
        log_every=1,
    )


@pytest.mark.slow
def test_training_resumes_exactly_and_logs_the_gain(config: MetaConfig, tmp_path: Path) -> None:
    whole = meta_train(config, quiet=True)
    lines = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    (validation,) = (line for line in lines if "gain" in line)
    assert validation["gain"] == pytest.approx(
        validation["validation_before"] - validation["validation_after"]
    )

    script = tmp_path / "stop.py"
    split = replace(config, output=tmp_path / "split")
    script.write_text(STOPPED.format(config=split))
    stopped = subprocess.run([sys.executable, str(script)], check=False)
    assert stopped.returncode == 9
    resumed = meta_train(split, resume=True, quiet=True)
    same_weights(load_file(whole), load_file(resumed), tolerance=0)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_meta_batch(
    config: MetaConfig, tmp_path: Path
) -> None:
    one = replace(config, steps=1)
    two = replace(one, output=tmp_path / "two")
    script = tmp_path / "two.py"
    script.write_text(TRAIN.format(config=two))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, str(script)], check=True)
    # Half precision and another order of summation.
    same_weights(load_file(meta_train(one, quiet=True)), load_file(two.output / WEIGHTS), 1e-3)


TRAIN = """
from pathlib import *
from metaformer.training.meta import WEIGHTS, MetaConfig, meta_train
meta_train({config!r}, quiet=True)
"""

STOPPED = """
import os
from pathlib import *
import metaformer.training.meta as module
from metaformer.training.meta import MetaConfig
export = module.export
def export_and_die(*arguments):
    export(*arguments)
    os._exit(9)
module.export = export_and_die
module.meta_train({config!r}, quiet=True)
"""


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=tolerance, msg=name)
