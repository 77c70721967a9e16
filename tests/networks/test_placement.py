"""A backbone on a device gives what it gives without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaformer.networks.efficientnet import load_backbone
from metaformer.networks.placement import DeviceError, OnDevice, check_device, placed

CPU = torch.device("cpu")


def test_a_backbone_on_a_device_gives_the_same_features():
    backbone = load_backbone(deepest=16)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    on_device = OnDevice(backbone, CPU)
    assert on_device.channels == backbone.channels
    found, expected = on_device(images), backbone(images)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[stride], expected[stride]) for stride in expected)


def test_network_and_images_are_brought_there_and_features_back():
    class Moved(nn.Module):
        channels = {8: 3}  # noqa: RUF012
        places: list[torch.device] = []  # noqa: RUF012

        def to(self, device):
            self.places.append(device)
            return super().to(device)

        def forward(self, images):
            return {8: Features(images * 2)}

    class Features(torch.Tensor):
        """As on a device: says so when it is brought back."""

        def cpu(self):
            return self.as_subclass(torch.Tensor) + 1

    network = Moved()
    found = OnDevice(network, CPU)(torch.ones(1, 3, 8, 8))
    assert network.places == [CPU]
    assert torch.equal(found[8], torch.full((1, 3, 8, 8), 3.0))


def test_only_modules_are_moved_and_the_processor_needs_no_wrapping():
    class Plain:
        channels = {8: 3}  # noqa: RUF012

        def __call__(self, images):
            return {8: images + 1}

    network = Plain()
    assert placed(network, "cpu") is network
    assert torch.equal(OnDevice(network, CPU)(torch.zeros(1, 3, 8, 8))[8], torch.ones(1, 3, 8, 8))


def test_a_device_that_is_not_known_is_refused():
    with pytest.raises(DeviceError, match="device 'toaster': not known; accepted are cpu"):
        check_device("toaster")
