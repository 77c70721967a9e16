"""Keying, effect photos, saliency sets, checkpoints and the training loop of P."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from metaformer.networks.instance_prior import (
    CARD,
    EFFECTS,
    WEIGHTS,
    PriorConfig,
    edit,
    prior_from_bytes,
)
from metaformer.training.checkpoints import (
    CheckpointError,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from metaformer.training.distributed import Workers
from metaformer.training.prior.chroma_key import key_by_border
from metaformer.training.prior.effect_photos import PhotoMix, draw_composed, draw_effect_batch
from metaformer.training.prior.effect_pool import EffectPool
from metaformer.training.prior.photo_bank import load_bank
from metaformer.training.prior.saliency_sets import LAYOUTS, load_saliency_set
from metaformer.training.prior.train import PriorTrainer, PriorTrainingConfig, to_batch, train_prior
from metaformer.training.run_log import LOG


def write(path: Path, rgb: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


def object_photo(rng: np.random.Generator, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A patterned ellipse on a softly lit plain backdrop, and its mask."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    mask = (x / rng.uniform(0.2, 0.35)) ** 2 + (y / rng.uniform(0.2, 0.35)) ** 2 < 1
    light = 1 + 0.2 * x + 0.1 * y
    image = rng.uniform(150, 220, 3) * light[..., None]
    image[mask] = rng.uniform(10, 90, 3) + 15 * np.sin(60 * x[mask])[:, None]
    image += rng.normal(0, 1.5, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(14):
        write(root / f"things/{i}.png", object_photo(rng)[0])
    for i in range(8):
        noise = rng.integers(0, 256, (12, 12, 3), np.uint8)
        write(root / f"grounds/{i}.png", cv2.resize(noise, (96, 96)))
        write(root / f"things/busy/{i}.png", cv2.resize(noise[::-1], (96, 96)))
    return root


def tiny(data: Path, output: Path, **changes: object) -> PriorTrainingConfig:
    settings: dict[str, object] = {
        "prior": PriorConfig(side=32, width=8),
        "critic_width": 8,
        "batch": 2,
        "steps": 12,
        "pool": 3,
        "precision": "float32",
        "log_every": 1,
        "watch_every": 6,
        "checkpoint_every": 4,
    }
    return PriorTrainingConfig(
        output=output,
        data=data,
        object_folders=("things",),
        background_folders=("grounds",),
        **{**settings, **changes},  # type: ignore[arg-type]
    )


# Keying by colour


def test_an_object_on_a_plain_backdrop_is_cut_out() -> None:
    image, mask = object_photo(np.random.default_rng(3))
    matte = key_by_border(image)
    assert matte is not None
    found = matte > 0.5
    assert (found & mask).sum() / (found | mask).sum() > 0.9
    assert matte.shape == mask.shape
    assert matte.min() >= 0
    assert matte.max() <= 1


def test_photos_without_a_plain_backdrop_or_a_whole_object_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    assert key_by_border(rng.integers(0, 256, (96, 96, 3), np.uint8)) is None
    assert key_by_border(np.full((96, 96, 3), 128, np.uint8)) is None
    image, mask = object_photo(rng)
    cropped = image[:, 96 // 2 - 10 : 96 // 2 + 10]  # the object runs across the photo
    assert mask[:, 38:58].any(axis=1).mean() > 0.3
    assert key_by_border(cropped) is None


# Photos


def test_no_photo_is_on_two_sides(data: Path) -> None:
    bank = load_bank([data / "things"], [data / "grounds"], seed=1)
    seen = [
        {photo.tobytes() for photo in (*side.plain, *side.backgrounds)}
        for side in (bank.natural, bank.effect, bank.held_out)
    ]
    assert all(seen)
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_composed_photos_show_the_object_inside_the_matte_only(data: Path) -> None:
    side = load_bank([data / "things"], [data / "grounds"], seed=1).effect
    areas = []
    for seed in range(20):
        photo, matte = draw_composed(
            side, PhotoMix(), seed % 2 == 0, 64, np.random.default_rng(seed)
        )
        assert photo.shape == (64, 64, 3)
        assert photo.dtype == np.uint8
        assert 0 <= matte.min() <= matte.max() <= 1
        areas.append(matte.mean())
    assert min(areas) > 0.001
    assert max(areas) < 0.95
    assert np.std(areas) > 0.03  # several sizes


def test_too_few_keyable_photos_and_empty_folders_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: no image found"):
        load_bank([tmp_path / "none"], [data / "grounds"], seed=0)
    with pytest.raises(ValueError, match="only 0 photos show one object"):
        load_bank([data / "grounds"], [data / "grounds"], seed=0)


def test_real_effect_photos_reach_the_critic_unchanged(data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for effect, value in (("black", 0), ("colour", 90)):
        image, mask = object_photo(rng)
        image[~mask] = value
        write(tmp_path / effect / "1.png", image)
    bank = load_bank([data / "things"], [data / "grounds"], seed=0, effect_folder=tmp_path)
    mix = PhotoMix(effect_as_taken=1.0)
    photos, mattes, codes = draw_effect_batch(bank, mix, 64, 6, np.random.default_rng(0))
    assert bool((mattes == 1).all())
    for photo, code in zip(photos, codes, strict=True):
        assert abs(int(np.median(photo[:4])) - {"black": 0, "colour": 90}[EFFECTS[code]]) <= 2
    with pytest.raises(ValueError, match="no subfolder named black"):
        load_bank([data / "things"], [data / "grounds"], seed=0, effect_folder=data)


# Saliency sets


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_saliency_sets_pair_photos_with_masks(layout: str, tmp_path: Path) -> None:
    images, masks = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    for i in (10, 2):
        image, mask = object_photo(rng, 32)
        write(tmp_path / images / f"{i}.jpg", image)
        write(
            tmp_path / masks / f"{i}.png", np.repeat(mask[..., None] * 255, 3, 2).astype(np.uint8)
        )
    samples = load_saliency_set(tmp_path)
    assert [s.image.name for s in samples] == ["2.jpg", "10.jpg"]
    assert [s.mask.name for s in samples] == ["2.png", "10.png"]
    (tmp_path / masks / "2.png").unlink()
    with pytest.raises(ValueError, match=r"2\.jpg: no mask 2\.png"):
        load_saliency_set(tmp_path)


def test_photos_of_a_saliency_set_join_side_a(data: Path, tmp_path: Path) -> None:
    image, mask = object_photo(np.random.default_rng(9))
    write(tmp_path / "images/1.jpg", image)
    write(tmp_path / "ground_truth_mask/1.png", np.repeat(mask[..., None] * 255, 3, 2).astype("u1"))
    without = load_bank([data / "things"], [data / "grounds"], seed=0)
    joined = load_bank([data / "things"], [data / "grounds"], seed=0, saliency_sets=[tmp_path])
    assert len(joined.natural.plain) == len(without.natural.plain) + 1
    assert len(joined.effect.objects) == len(without.effect.objects)
    with pytest.raises(ValueError, match="no layout of a saliency set"):
        load_saliency_set(data)


# Configuration


def test_configuration_reads_yaml_and_names_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "prior.yaml"
    minimal = "output: o\ndata: d\nobject_folders: [a]\nbackground_folders: [b]\n"
    path.write_text(minimal + "prior: {side: 64}\nmix: {material: 0.1}\ngenerator_lr: 1.0e-4\n")
    config = PriorTrainingConfig.from_yaml(path)
    assert (config.prior.side, config.mix.material, config.generator_lr) == (64, 0.1, 1e-4)
    for extra, message in (
        ("stepz: 3\n", "unknown key 'stepz'"),
        ("prior: {side: 65}\n", "side=65"),
        ("prior: {sides: 65}\n", "sides"),
        ("batch: 0\n", "batch=0"),
        ("precision: half\n", "precision: found 'half'"),
    ):
        path.write_text(minimal + extra)
        with pytest.raises(ValueError, match=message):
            PriorTrainingConfig.from_yaml(path)
    path.write_text("output: o\n")
    with pytest.raises(ValueError, match="'background_folders' is missing"):
        PriorTrainingConfig.from_yaml(path)


def test_the_shipped_configuration_is_valid() -> None:
    path = Path(__file__).parents[2] / "configs" / "prior.yaml"
    assert PriorTrainingConfig.from_yaml(path).prior.width == PriorConfig().width


# Checkpoints and the pool


def test_optimiser_state_survives_a_checkpoint(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam(layer.parameters(), 0.1)

    def step(layer: torch.nn.Linear, optimiser: torch.optim.Adam) -> None:
        optimiser.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimiser.step()

    layer, optimiser = make()
    step(layer, optimiser)
    path = tmp_path / "c.safetensors"
    tensors = {**optimiser_tensors("adam", optimiser), **layer.state_dict()}
    save_checkpoint(path, tensors, {"step": 1})
    step(layer, optimiser)

    other, resumed = make()
    loaded, record = load_checkpoint(path)
    assert record == {"step": 1}
    other.load_state_dict({name: loaded[name] for name in other.state_dict()})
    restore_optimiser("adam", resumed, loaded)
    step(other, resumed)
    assert torch.equal(other.weight, layer.weight)


def test_checkpoint_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "bad.safetensors")


def test_the_pool_never_mixes_effects() -> None:
    pool = EffectPool(slots=2, side=4)
    rng = np.random.default_rng(0)
    returned_old = False
    for i in range(30):
        codes = torch.tensor([i % 3, (i + 1) % 3])
        fakes = (codes.float() + (i % 10) * 0.05)[:, None, None, None].expand(2, 3, 4, 4)
        out = pool.exchange(fakes, codes, rng)
        # The value's whole part is its effect.
        assert torch.equal((out[:, 0, 0, 0] + 0.01).floor().long(), codes)
        returned_old |= not torch.allclose(out, fakes, atol=1e-2)
    assert returned_old


# The loop


def test_area_guard_acts_on_a_collapsed_matte_and_only_there(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    bank = load_bank([data / "things"], [data / "grounds"], seed=0)
    for bias, expected in ((0.0, 0.0), (30.0, 1 - config.area_high), (-30.0, config.area_low)):
        trainer = PriorTrainer(config, bank, Workers(0, 1, torch.device("cpu")))
        with torch.no_grad():
            trainer.generator.head.weight.zero_()
            trainer.generator.head.bias.fill_(bias)
        values = trainer.train_step()
        assert float(values["area_guard"]) == pytest.approx(expected, abs=1e-5)


def test_p_learns_to_make_an_effect_again(data: Path, tmp_path: Path) -> None:
    train_prior(tiny(data, tmp_path, steps=40, generator_lr=2e-3), quiet=True)
    values = [x["difference"] for x in curve(tmp_path) if "difference" in x]
    assert np.mean(values[-15:]) < 0.85 * np.mean(values[:10])


def test_a_run_can_begin_with_the_p_of_another_size(data: Path, tmp_path: Path) -> None:
    first = train_prior(tiny(data, tmp_path / "first", steps=2), quiet=True)
    config = tiny(data, tmp_path / "second", prior=PriorConfig(64, 8), start_from=str(first))
    bank = load_bank([data / "things"], [data / "grounds"], seed=0)
    trainer = PriorTrainer(config, bank, Workers(0, 1, torch.device("cpu")))
    stored = load_checkpoint(first)[0]
    for name, tensor in trainer.generator.state_dict().items():
        assert torch.equal(tensor, stored[f"ema.{name}"])
    assert "start_from" not in config.describe()  # a path of this machine


def test_training_writes_log_sheet_and_loadable_weights(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "run")
    checkpoint = train_prior(config, quiet=True)
    assert load_checkpoint(checkpoint)[1]["step"] == 12
    lines = [json.loads(x) for x in (tmp_path / "run" / LOG).read_text().splitlines()]
    assert [x["step"] for x in lines if "wasserstein" in x] == list(range(1, 13))
    assert [x["step"] for x in lines if "iou_as_taken" in x] == [6, 12]
    assert lines[-2]["lr_share"] < 0.3
    assert (tmp_path / "run" / "r-000012.png").is_file()
    prior = prior_from_bytes(
        (tmp_path / "run" / WEIGHTS).read_bytes(), (tmp_path / "run" / CARD).read_text()
    )
    assert prior.config == config.prior
    with pytest.raises(CheckpointError, match="a run is here already"):
        train_prior(config, quiet=True)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_prior(tiny(data, tmp_path / "other"), resume=True, quiet=True)


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_prior_training import tiny
from metaformer.training.prior.train import train_prior
train_prior(tiny(Path({data!r}), Path({output!r}), **dict({changes})), quiet=True)
"""


def curve(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(x) for x in (folder / LOG).read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


def test_resuming_after_kill_9_continues_the_same_curve(data: Path, tmp_path: Path) -> None:
    steps = 40
    whole = train_prior(tiny(data, tmp_path / "whole", steps=steps), quiet=True)

    killed = tmp_path / "killed"
    script = RUN.format(
        tests=str(Path(__file__).parent),
        data=str(data),
        output=str(killed),
        changes=f"steps={steps}",
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not (killed / "checkpoint.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = load_checkpoint(killed / "checkpoint.safetensors")[1]["step"]
    assert 0 < reached < steps

    resumed = train_prior(tiny(data, killed, steps=steps), resume=True, quiet=True)
    assert curve(killed) == curve(tmp_path / "whole")
    expected, got = load_checkpoint(whole)[0], load_checkpoint(resumed)[0]
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


SAME_WEIGHTS = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_prior_training import tiny
from metaformer.training.distributed import gather, join_workers
from metaformer.training.prior.photo_bank import load_bank
from metaformer.training.prior.train import PriorTrainer
data, output = Path({data!r}), Path({output!r})
torch.set_num_threads(1)
with join_workers() as workers:
    bank = load_bank([data / "things"], [data / "grounds"], seed=0)
    trainer = PriorTrainer(tiny(data, output), bank, workers)
    for _ in range(3):
        values = trainer.train_step()
    flat = torch.cat([p.detach().flatten() for p in trainer.generator.parameters()])
    weights, areas = gather(flat, workers), gather(values["area"].reshape(1), workers)
    assert len(weights) == 2 and torch.equal(weights[0], weights[1])
    assert not torch.equal(areas[0], areas[1])  # each process has photos of its own
"""


def torchrun(script: Path, code: str, **values: str) -> None:
    script.write_text(code.format(tests=str(Path(__file__).parent), **values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, env=environment, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(data: Path, tmp_path: Path) -> None:
    torchrun(tmp_path / "two.py", SAME_WEIGHTS, data=str(data), output=str(tmp_path / "run"))


@pytest.mark.slow
def test_two_processes_write_one_run(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    torchrun(tmp_path / "two.py", RUN, data=str(data), output=str(output), changes="")
    tensors, record = load_checkpoint(output / "checkpoint.safetensors")
    assert (record["workers"], record["step"]) == (2, 12)
    assert not torch.equal(tensors["pool.0.photos"], tensors["pool.1.photos"])
    with pytest.raises(CheckpointError, match="written by 2 processes"):
        train_prior(tiny(data, output), resume=True, quiet=True)


def test_photos_become_tensors_in_0_to_1() -> None:
    photo = np.zeros((4, 5, 3), np.uint8)
    photo[1, 2] = (255, 51, 0)
    batch = to_batch([photo])
    assert batch.shape == (1, 3, 4, 5)
    torch.testing.assert_close(batch[0, :, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
    assert float(edit(batch, "colour").max()) < 0.5
