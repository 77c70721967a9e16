"""Meta-training: its gradients are right, and it changes nothing it should not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from metaformer.detection.pixel.inner_rates import InnerRates, adapted_parameters, total_norm
from metaformer.detection.pixel.losses import dice_loss, image_logits, location_loss, ranking_loss
from metaformer.detection.pixel.universal_weights import load_universal
from metaformer.networks.autoencoder import Autoencoder, AutoencoderConfig
from metaformer.training.checkpoints import load_checkpoint
from metaformer.training.universal import maml
from metaformer.training.universal.config import MetaConfig
from metaformer.training.universal.distance_map import DefectLogit
from metaformer.training.universal.losses import LossWeights, Task, episode_loss
from metaformer.training.universal.maml import (
    ConstantStep,
    adapt,
    adaptation_gain,
    reconstruct,
    step_weights,
)
from metaformer.training.universal.train import MetaLearner, export, meta_train
from tests.helpers import trees

REBUILD = LossWeights(rebuild=1.0, locate=0.0, rank=0.0)
"""The pure reconstruction of the paper's meta-task."""


def images(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 128, 128, generator=generator, dtype=dtype) * 2 - 1


def autoencoder(norm: str = "support") -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(norm=norm))  # type: ignore[arg-type]


def make_task(support: Tensor, *, defects: bool = True) -> Task:
    """Two queries, the second with a square defect."""
    clean = images(2, 2, support.dtype)
    query, masks = clean.clone(), torch.zeros(2, 128, 128, dtype=support.dtype)
    if defects:
        query[1, :, 32:64, 32:64] = 1.0
        masks[1, 32:64, 32:64] = 1.0
    return Task(support, query, clean, masks)


# The inner loop


@pytest.mark.parametrize("shrunk", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_outer_gradient_is_the_finite_difference_of_second_order_and_not_of_first(
    shrunk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The gradient's norm is about 80 here: far above the bound as it is, far below the other.
    monkeypatch.setattr(maml, "LARGEST_GRADIENT", 1.0 if shrunk else 1e4)
    model = autoencoder().double()
    rates = InnerRates(model, steps=1, inner_lr=0.5 if shrunk else 0.01).double()
    support, query = images(1, 1, torch.float64), images(1, 2, torch.float64)
    weight = model.decoder_convs[3].weight
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    direction /= direction.norm()

    def loss(second_order: bool) -> Tensor:
        fast = adapt(model, rates, support, second_order=second_order)[-1]
        return F.mse_loss(reconstruct(model, fast, support, query), query)

    slopes = {
        order: float((torch.autograd.grad(loss(order), weight)[0] * direction).sum())
        for order in (True, False)
    }
    # So small that next to no activation crosses the kink of the leaky ReLU on the way: there the
    # inner gradient jumps, which no derivative sees.
    eps, values = 1e-8, []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * eps * direction
        values.append(float(loss(False).detach()))
        with torch.no_grad():
            weight -= sign * eps * direction
    numeric = (values[0] - values[1]) / (2 * eps)

    assert slopes[True] == pytest.approx(numeric, rel=1e-3)
    assert abs(slopes[False] - numeric) > 1e-2 * abs(numeric)


def test_a_long_gradient_is_shrunk_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, support = autoencoder(), images(1, 1)
    names = [name for name, _ in adapted_parameters(model)]
    loss = F.mse_loss(model(support), support)
    norm = float(total_norm(torch.autograd.grad(loss, [p for _, p in adapted_parameters(model)])))
    for bound, length in ((norm / 4, norm / 4), (4 * norm, norm)):
        monkeypatch.setattr(maml, "LARGEST_GRADIENT", bound)
        first, last = adapt(model, InnerRates(model, 1, 1e-2), support, second_order=False)
        moved = total_norm([last[name] - first[name] for name in names])
        assert float(moved.detach()) == pytest.approx(1e-2 * length, rel=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_constant_step_is_the_plain_expression(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(4, 3, 5, 5, generator=generator).contiguous(memory_format=layout)

    weight, rate = draw().requires_grad_(), torch.tensor(0.3, requires_grad=True)
    # Of another layout than the weight: gradients are multiplied by place, not by memory.
    gradient, upstream = draw(), torch.randn(4, 3, 5, 5, generator=generator)
    plain = weight - rate * gradient
    quick = ConstantStep.apply(weight, rate, gradient)
    torch.testing.assert_close(quick, plain)
    expected = torch.autograd.grad((plain * upstream).sum(), (weight, rate))
    found = torch.autograd.grad((quick * upstream).sum(), (weight, rate))
    torch.testing.assert_close(found, expected)


def test_first_order_gradients_are_those_of_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole inner loop: the start, the rates and the norms."""
    # In double precision: in single, the rounding of either form may choose another pixel of a
    # max pool, on some processors.
    support, query = images(1, 1, torch.float64), images(1, 2, torch.float64)
    model = autoencoder().double()
    rates = InnerRates(model, steps=2, inner_lr=0.05).double()
    parameters = [*model.parameters(), *rates.parameters()]

    def gradients() -> tuple[Tensor, ...]:
        fast = adapt(model, rates, support, second_order=False)[-1]
        loss = F.mse_loss(reconstruct(model, fast, support, query), query)
        return torch.autograd.grad(loss, parameters)

    found = gradients()

    class Plain:
        @staticmethod
        def apply(weight: Tensor, rate: Tensor, gradient: Tensor) -> Tensor:
            return weight - rate * gradient

    monkeypatch.setattr(maml, "ConstantStep", Plain)
    for one, other in zip(found, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_rate_zero_changes_no_bit() -> None:
    model = autoencoder()
    support, query = images(2, 1), images(1, 2)
    fast = adapt(model, InnerRates(model, 2, 0.0), support, second_order=False)[-1]
    with torch.no_grad():
        expected = model(query, model.support_moments(support))
        assert torch.equal(reconstruct(model, fast, support, query), expected)


@pytest.mark.parametrize("norm", ["support", "group"])
def test_an_evaluation_episode_leaves_everything_as_it_was(norm: str) -> None:
    model = autoencoder(norm)
    rates = InnerRates(model, steps=2, inner_lr=1e-2)
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
    fast = adapt(model, InnerRates(model, 1, 1.0), support, second_order=False)[-1]
    moved = autoencoder()
    moved.load_state_dict(fast)
    with torch.no_grad():
        expected = moved(query, moved.support_moments(support))
        torch.testing.assert_close(reconstruct(model, fast, support, query), expected)
        stale = moved(query, model.support_moments(support))
    assert (stale - expected).abs().max() > 1e-3


@given(steps=st.integers(1, 6), progress=st.floats(0, 3))
def test_weights_of_the_steps_go_from_even_to_the_last_alone(steps: int, progress: float) -> None:
    weights = step_weights(steps, progress)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    assert weights[-1] >= weights[0] - 1e-9
    assert step_weights(steps, 0) == pytest.approx([1 / steps] * steps)
    assert step_weights(steps, 1 + progress) == [0.0] * (steps - 1) + [1.0]


# The loss of an episode


def losses_of(
    model: Autoencoder,
    rates: InnerRates,
    task: Task,
    *,
    to_logit: DefectLogit | None = None,
    weights: LossWeights | None = None,
    second_order: bool = False,
    bfloat16: bool = False,
) -> dict[str, Tensor]:
    steps = [0.25] * (rates.steps - 1) + [1 - 0.25 * (rates.steps - 1)]
    return episode_loss(
        model,
        to_logit or DefectLogit(),
        rates,
        task,
        loss_weights=weights or LossWeights(),
        step_weights=steps,
        second_order=second_order,
        bfloat16=bfloat16,
    )


def backward(parts: dict[str, Tensor]) -> float:
    total = torch.stack(list(parts.values())).sum()
    torch.autograd.backward(total)
    return float(total.detach())


def test_pure_reconstruction_is_the_weighted_query_loss_after_each_step() -> None:
    model, to_logit = autoencoder(), DefectLogit()
    rates = InnerRates(model, steps=2, inner_lr=0.1)
    task = make_task(images(1, 1))
    parts = losses_of(model, rates, task, to_logit=to_logit, weights=REBUILD)
    assert set(parts) == {"rebuild"}
    history = adapt(model, rates, task.support, second_order=False)
    with torch.no_grad():
        after = [
            float(F.mse_loss(reconstruct(model, fast, task.support, task.query), task.clean_query))
            for fast in history[1:]
        ]
    assert after[0] != after[1]
    expected = sum(w * loss for w, loss in zip([0.25, 0.75], after, strict=True))
    assert float(parts["rebuild"].detach()) == pytest.approx(expected, rel=1e-5)
    backward(parts)
    assert all(parameter.grad is None for parameter in to_logit.parameters())
    assert rates.rates.grad is not None
    assert (rates.rates.grad != 0).all(), "every step has its rate"


@pytest.mark.parametrize(
    ("second_order", "bfloat16"),
    # Minutes on a processor without bfloat16.
    [(True, False), pytest.param(False, True, marks=pytest.mark.slow)],
)
def test_all_parts_together_reach_everything_that_is_learned(
    second_order: bool, bfloat16: bool
) -> None:
    model, to_logit = autoencoder(), DefectLogit()
    rates = InnerRates(model, steps=2, inner_lr=1e-2)
    task = make_task(images(1, 1))
    parts = losses_of(
        model, rates, task, to_logit=to_logit, second_order=second_order, bfloat16=bfloat16
    )
    assert set(parts) == {"rebuild", "locate", "rank"}
    assert all(part.isfinite() and part > 0 for part in parts.values())
    backward(parts)
    for name, parameter in [*model.named_parameters(), *to_logit.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert rates.rates.grad is not None
    assert (rates.rates.grad != 0).all()


@pytest.mark.parametrize(("value", "second_order"), [(0.0, True), (-1.0, False)])
def test_a_flat_support_gives_finite_losses_and_gradients(value: float, second_order: bool) -> None:
    model = autoencoder()
    rates = InnerRates(model, steps=1, inner_lr=1e-2)
    task = make_task(torch.full((1, 3, 128, 128), value))
    total = backward(losses_of(model, rates, task, second_order=second_order))
    assert np.isfinite(total)
    for name, parameter in [*model.named_parameters(), *rates.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_whole_novel_image_is_not_to_be_rebuilt_as_its_twin() -> None:
    model = autoencoder()
    rates = InnerRates(model, steps=1, inner_lr=1e-2)
    task = make_task(images(1, 1))
    novel = replace(
        task,
        query=torch.cat([task.query, images(1, 7)]),
        clean_query=torch.cat([task.clean_query, images(1, 8)]),
        masks=torch.cat([task.masks, torch.ones_like(task.masks[:1])]),
    )
    plain, mixed = losses_of(model, rates, task), losses_of(model, rates, novel)
    expected = float(plain["rebuild"].detach())
    assert float(mixed["rebuild"].detach()) == pytest.approx(expected, rel=1e-5)
    assert mixed["locate"] != plain["locate"]


@pytest.mark.parametrize("name", ["rebuild", "locate", "rank"])
def test_a_part_left_out_is_zero_and_the_others_stay(name: str) -> None:
    model = autoencoder()
    rates = InnerRates(model, steps=1, inner_lr=1e-2)
    task = make_task(images(1, 1))
    whole = losses_of(model, rates, task)
    nothing = LossWeights(0.0, 0.0, 0.0)
    weights = replace(nothing, **{name: 2 * getattr(LossWeights(), name)})
    alone = losses_of(model, rates, task, weights=weights)
    assert float(alone[name].detach()) == pytest.approx(2 * float(whole[name].detach()), rel=1e-4)
    assert alone[name] > 0
    assert all(part == 0 for other, part in alone.items() if other != name)


def test_features_are_asked_to_tell_defects_apart() -> None:
    """A step along the gradient of these parts raises the defective query above the clean one."""
    model = autoencoder()
    rates = InnerRates(model, steps=1, inner_lr=1e-2)
    task = make_task(images(1, 1))
    weights = LossWeights(rebuild=0.0, locate=0.5, rank=0.5)
    before = losses_of(model, rates, task, weights=weights)
    backward(before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                length = parameter.grad.norm().clamp_min(1e-12)
                parameter.sub_(1e-3 * parameter.norm() * parameter.grad / length)
    after = losses_of(model, rates, task, weights=weights)
    for name in ("locate", "rank"):
        assert after[name] < before[name], name


def test_an_autoencoder_without_support_moments_trains_too() -> None:
    model = autoencoder("group")
    rates = InnerRates(model, steps=1, inner_lr=1e-2)
    assert np.isfinite(backward(losses_of(model, rates, make_task(images(1, 1)))))
    weight = model.encoder_convs[0].weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_a_good_map_has_less_loss_than_none_and_a_wrong_one_more() -> None:
    target = torch.zeros(2, 32, 32)
    target[1, 8:16, 8:16] = 1.0
    right, silent = 8 * target - 4, torch.full_like(target, -4.0)
    wrong = right.roll(12, dims=2)
    assert location_loss(right, target) < location_loss(silent, target)
    assert location_loss(silent, target) < location_loss(wrong, target)
    assert dice_loss(target, target) == pytest.approx(0, abs=1e-6)
    assert dice_loss(1 - target, target) > 0.9
    assert location_loss(right, torch.zeros_like(target)).isfinite()


def test_ranking_asks_for_defective_above_clean() -> None:
    scores, is_defective = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([False, False, True])
    assert ranking_loss(scores, is_defective) < 0.05
    assert ranking_loss(scores, ~is_defective) > 4
    assert ranking_loss(scores, torch.ones(3, dtype=torch.bool)) == 0


def test_an_image_scores_by_its_largest_values() -> None:
    logits = torch.zeros(2, 20, 20)
    logits[1, 3, 3:5] = 6.0
    logits[1, 9, 9:11] = 2.0
    assert image_logits(logits).tolist() == [0.0, 4.0]


# Meta-training


@pytest.fixture
def config(tmp_path: Path) -> MetaConfig:
    return MetaConfig(
        data=trees.textures(tmp_path / "photos"),
        output=tmp_path / "run",
        shots=(1,),
        queries=(2, 2),
        meta_batch=2,
        steps=2,
        inner_steps=1,
        # Large steps, so that what differs shows.
        outer_lr=1e-2,
        rate_lr=1e-2,
        warm_up=1,
        first_order_share=0.5,
        validate_every=2,
        validation_episodes=2,
        checkpoint_every=1,
        log_every=1,
    )


def test_training_goes_on_from_what_was_exported_or_plainly_trained(
    config: MetaConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    first = MetaLearner(config)
    config.output.mkdir()
    export(first, config, 1)
    shipped, rates = load_universal(config.output)
    half = {name: t.half().float() for name, t in first.autoencoder.state_dict().items()}
    assert all(torch.equal(t, half[name]) for name, t in shipped.state_dict().items())
    assert torch.equal(rates.rates, first.rates.rates)

    exported = config.output / "universal.safetensors"
    again = MetaLearner(replace(config, start=exported, inner_lr=0.5))
    assert all(torch.equal(t, half[name]) for name, t in again.autoencoder.state_dict().items())
    assert torch.equal(again.rates.rates, first.rates.rates), "not those of the configuration"
    with pytest.raises(ValueError, match=r"1 inner steps; accepted with it is inner_steps: 1"):
        MetaLearner(replace(config, start=exported, inner_steps=3))

    plain = tmp_path / "autoencoder.safetensors"
    save_file({name: t.half().contiguous() for name, t in half.items()}, plain)
    begun = MetaLearner(replace(config, start=plain, inner_lr=0.5))
    assert all(torch.equal(t, half[name]) for name, t in begun.autoencoder.state_dict().items())
    assert (begun.rates.rates == 0.5).all()


@pytest.mark.slow
def test_training_resumes_exactly_and_logs_what_it_found(
    config: MetaConfig, tmp_path: Path
) -> None:
    whole = meta_train(config, quiet=True)
    lines = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rebuild" in line] == [1, 2]
    assert any(config.output.glob("events.out.tfevents.*")), "for TensorBoard"
    validations = [line for line in lines if "validation" in line]
    assert [line["validation"] for line in validations] == ["synthetic", "novelty"]
    for line in validations:
        assert line["gain"] == pytest.approx(line["before"] - line["after"], rel=1e-3)
        assert line["episodes"] == config.validation_episodes

    script = tmp_path / "stop.py"
    split = replace(config, output=tmp_path / "split")
    script.write_text(STOPPED.format(config=split))
    stopped = subprocess.run([sys.executable, str(script)], check=False)
    assert stopped.returncode == 9
    halfway, record = load_checkpoint(split.output / "checkpoint.safetensors")
    assert record["step"] == 1
    resumed = meta_train(split, resume=True, quiet=True)
    ends = [
        load_checkpoint(run / "checkpoint.safetensors")[0] for run in (config.output, split.output)
    ]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    start, end = (
        torch.cat([t.flatten() for name, t in state.items() if name.startswith("learner")])
        for state in (halfway, ends[0])
    )
    assert (start - end).abs().max() > 1e-4, "the second step must have counted"
    assert all(torch.equal(t, load_file(resumed)[name]) for name, t in load_file(whole).items())


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_meta_batch(
    config: MetaConfig, tmp_path: Path
) -> None:
    one = replace(config, steps=1, bfloat16=False)
    half = replace(one, meta_batch=1, output=tmp_path / "half")
    two = replace(one, output=tmp_path / "two")
    script = tmp_path / "two.py"
    script.write_text(TRAIN.format(config=two))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, str(script)], check=True)
    meta_train(one, quiet=True)
    meta_train(half, quiet=True)
    gradient, alone, shared = (first_gradient(run.output) for run in (one, half, two))
    assert (shared - gradient).norm() < 1e-3 * gradient.norm()
    # An untrained A gets much the same gradient from every task; half of them must still differ by
    # far more than the tolerance, or the line above could not fail.
    assert (alone - gradient).norm() > 1e-2 * gradient.norm()


def first_gradient(run: Path) -> Tensor:
    """After one step Adam's first moment is the gradient, times a constant."""
    tensors, _ = load_checkpoint(run / "checkpoint.safetensors")
    moments = [t.flatten() for name, t in sorted(tensors.items()) if "exp_avg." in f"{name}."]
    assert moments, "the checkpoint must hold the optimiser's state"
    return torch.cat(moments)


TRAIN = """
from pathlib import *
from metaformer.networks.autoencoder import AutoencoderConfig
from metaformer.training.universal.losses import LossWeights
from metaformer.training.universal.train import meta_train
from metaformer.training.universal.config import MetaConfig
meta_train({config!r}, quiet=True)
"""

STOPPED = """
import os
from pathlib import *
from metaformer.networks.autoencoder import AutoencoderConfig
from metaformer.training.universal.losses import LossWeights
import metaformer.training.universal.train as module
from metaformer.training.universal.config import MetaConfig
export = module.export
def export_and_die(*arguments):
    export(*arguments)
    os._exit(9)
module.export = export_and_die
module.meta_train({config!r}, quiet=True)
"""
