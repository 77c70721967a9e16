"""A user's own network as the backbone, and the device it computes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from metaformer.detection.detector import Detector
from metaformer.detection.detector_file import DetectorFileError
from metaformer.detection.metaformer import Metaformer
from metaformer.networks.backbone_weights import BackboneError
from metaformer.networks.efficientnet import INPUT_MEAN, INPUT_STD, load_backbone
from metaformer.networks.placement import DeviceError, check_device
from tests.helpers import boards


class Shipped(nn.Module):
    """The backbone inside the package, standardisation taken out, as somebody's own."""

    def __init__(self, form: str = "list") -> None:
        super().__init__()
        self.network = load_backbone(16, input_mean=(0.0,) * 3, input_std=(1.0,) * 3)
        self.form = form

    def forward(self, images):
        found = self.network(images)
        maps = [found[8], found[16]]
        return {"list": maps, "mapping": {"c3": maps[0], "c4": maps[1]}, "one": maps[1]}[self.form]


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.BatchNorm2d(8))


SUPPORT = [boards.good(seed) for seed in range(3)]


@pytest.mark.parametrize("form", ["list", "mapping"])
def test_the_shipped_backbone_given_as_a_module_scores_alike(form):
    own = Metaformer.from_backbone(
        Shipped(form), mean=INPUT_MEAN, std=INPUT_STD, level_weights=(0.5, 1), resolution=96
    )
    found = own.adapt(SUPPORT).predict(boards.defective(0))
    # The transformer was trained on the shipped backbone and goes with it alone.
    plain = Metaformer(boards.universal().model.with_config(transformer=False), "feature")
    usual = plain.adapt(SUPPORT).predict(boards.defective(0))
    assert found.raw_score == pytest.approx(usual.raw_score, rel=1e-4)
    assert np.allclose(found.anomaly_map, usual.anomaly_map, atol=1e-3)


def test_a_single_map_is_one_level():
    universal = Metaformer.from_backbone(Shipped("one"), resolution=96)
    assert universal.model.config.levels == (16,)
    assert universal.adapt(SUPPORT).predict(boards.defective(0)).is_anomalous


def test_the_callers_module_stays_as_it_is():
    module = tiny().train()
    universal = Metaformer.from_backbone(module, resolution=96)
    assert module.training and all(p.requires_grad for p in module.parameters())
    detector = universal.adapt(SUPPORT)
    before = detector.predict(boards.defective(0)).raw_score
    nn.init.zeros_(module[0].weight)
    assert detector.predict(boards.defective(0)).raw_score == before


def test_a_detector_file_needs_the_same_module_again(tmp_path):
    path = tmp_path / "own.metaformer"
    universal = Metaformer.from_backbone(tiny(), mean=(0.5,) * 3, std=(0.2,) * 3, resolution=96)
    detector = universal.adapt(SUPPORT)
    detector.save(path)
    again = Detector.load(path, backbone=tiny())
    assert again.predict(boards.defective(0)).raw_score == (
        detector.predict(boards.defective(0)).raw_score
    )
    assert again.info()["settings"]["config"]["backbone"] == "custom:Sequential"
    with pytest.raises(
        DetectorFileError, match=r"own.metaformer: made with a backbone of your own"
    ):
        Detector.load(path)
    with pytest.raises(DetectorFileError, match="is not the one it was made with"):
        Detector.load(path, backbone=tiny(1))
    boards.detector().save(path)
    with pytest.raises(DetectorFileError, match="Leave backbone out"):
        Detector.load(path, backbone=tiny())


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda images: images, {}, "a function is no backbone"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), {}, r"returned \[\(1, 3\)\]"),
        (nn.Conv2d(4, 8, 8, 8), {}, "cannot be run on an image"),
        (nn.Conv2d(3, 8, 9, 7), {}, "needed is"),
        (tiny(), {"levels": (16,)}, r"strides \[8\], asked for are \[16\]"),
        (tiny(), {"std": (0.1, 0.0, 0.1)}, "std above 0"),
        (tiny(), {"level_weights": (1, 2)}, "level_weights"),
        (tiny(), {"resolution": 10}, "between 64 and 2048"),
    ],
)
def test_what_is_no_backbone_is_refused(module, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Metaformer.from_backbone(module, **options)
    assert isinstance(caught.value, BackboneError) or "level" in message or "2048" in message


# Devices


def test_the_cpu_named_is_the_cpu_left_out(tmp_path):
    named = Metaformer.from_pretrained(resolution=96, device="cpu").adapt(SUPPORT)
    usual = boards.universal().adapt(SUPPORT)
    image = boards.defective(0)
    assert named.predict(image).raw_score == usual.predict(image).raw_score
    named.save(tmp_path / "d")
    again = Detector.load(tmp_path / "d", device="cpu")
    assert again.predict(image).raw_score == usual.predict(image).raw_score


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(tmp_path):
    boards.detector().save(tmp_path / "d")
    for make in (
        lambda: Metaformer.from_pretrained(device="cuda"),
        lambda: Metaformer.from_pretrained("pixel", device="cuda"),
        lambda: Metaformer.from_backbone(tiny(), device="cuda"),
        lambda: Detector.load(tmp_path / "d", device="cuda"),
    ):
        with pytest.raises(DeviceError, match="'cuda': not available here"):
            make()
    with pytest.raises(DeviceError, match="'gpu': not known"):
        check_device("gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_the_cpu_finds():
    there = Metaformer.from_pretrained(resolution=96, device="cuda").adapt(SUPPORT)
    usual = boards.universal().adapt(SUPPORT)
    for image in (boards.good(100), boards.defective(0)):
        assert there.predict(image).raw_score == pytest.approx(
            usual.predict(image).raw_score, rel=1e-2
        )
    with pytest.raises(DeviceError, match="the pixel preset computes on the CPU alone"):
        Metaformer.from_pretrained("pixel", device="cuda")
