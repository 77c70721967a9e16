from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file

from metaformer.io.images import read_image
from metaformer.networks.efficientnet import (
    EfficientNetLite0,
    Pointwise,
    SameConv,
    load_backbone,
    padded_kernel,
)
from tests.helpers import boards

DEMO_IMAGES = boards.BOARDS.parent
MEANS = load_file(Path(__file__).with_name("efficientnet_lite0_means.safetensors"))
"""Bundled photo -> (112,) mean features at stride 16 at 224 x 224, by the publisher's own network
on (pixel - 127) / 128 (``write_reference`` in ``tools/convert_backbone.py``)."""

CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}

# Channels 0 to 5 at row 2, column 3 of each map of the picture below, and the map's standard
# deviation, by the publisher's own network in full precision on (pixel - 127) / 128
# (`tools/convert_backbone.py` compares whole maps and classes).
PUBLISHED = {
    4: ([-11.140, -5.544, -3.137, -15.751, -8.159, 6.935], 8.915),
    8: ([-15.496, 2.059, -4.927, -3.118, -1.831, -2.978], 9.109),
    16: ([-1.736, 2.135, -5.903, 5.906, 1.824, -5.598], 5.430),
    32: ([-0.873, -1.398, 6.686, 1.443, 0.131, 8.232], 2.681),
}


@pytest.fixture(scope="module")
def backbone() -> EfficientNetLite0:
    return load_backbone(deepest=32)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    pixels = boards.whole("template", "00041005")[465:593, 296:456]
    return torch.tensor(pixels).permute(2, 0, 1)[None] / 255  # (1, 3, 128, 160)


def test_features_equal_the_published_network(backbone, picture):
    features = backbone(picture)
    for stride, (values, deviation) in PUBLISHED.items():
        # Weights are stored in half precision, hence the tolerance.
        assert features[stride][0, :6, 2, 3].tolist() == pytest.approx(values, abs=0.12)
        assert float(features[stride].std()) == pytest.approx(deviation, rel=0.005)


def resized(name: str) -> NDArray[np.uint8]:
    pixels = read_image(DEMO_IMAGES / name)
    return np.asarray(cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_AREA), np.uint8)


def mean_features(network: EfficientNetLite0, name: str) -> torch.Tensor:
    """(112,) of a bundled photo."""
    pixels = torch.from_numpy(resized(name)).permute(2, 0, 1)[None].float()
    return network(pixels / 255)[16].mean((2, 3))[0]


def likeness(network: EfficientNetLite0) -> list[float]:
    """Cosine of our mean features of each photo and the publisher's."""
    return [
        float(torch.cosine_similarity(mean_features(network, name), published, dim=0))
        for name, published in MEANS.items()
    ]


def test_real_photos_have_the_features_of_the_published_network(backbone):
    assert len(MEANS) >= 12
    assert min(likeness(backbone)) > 0.999
    for name, published in MEANS.items():  # in length too
        assert float(mean_features(backbone, name).norm() / published.norm()) == pytest.approx(
            1, abs=0.01
        )


@pytest.mark.parametrize(
    ("mean", "std", "most"),
    [
        pytest.param((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.95, id="ImageNet"),
        pytest.param((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.99, id="0 to 1"),
        pytest.param((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), 0.95, id="0 to 255"),
    ],
)
def test_with_another_input_they_have_not(mean, std, most):
    """So that the test above cannot pass on the wrong one."""
    assert max(likeness(load_backbone(16, input_mean=mean, input_std=std))) < most


def test_pixels_are_standardised_as_the_publisher_does_it(backbone):
    """Seen at the input of the first layer, for each colour."""
    levels = torch.tensor([0.0, 127.0, 255.0])
    pixels = levels[None, :, None, None].expand(1, 3, 32, 32) / 255
    seen: list[torch.Tensor] = []
    hook = backbone.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        backbone(pixels)
        backbone(pixels.flip(1))
    finally:
        hook.remove()
    expected = torch.tensor([-0.9921875, 0.0, 1.0])  # (pixel - 127) / 128
    torch.testing.assert_close(seen[0][0, :, 5, 5], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen[1][0, :, 5, 5], expected.flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (128, 96), (32, 64), (32, 224)])
def test_strides_and_channels_for_any_size(backbone, shape):
    features = backbone(torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)))
    assert list(features) == [4, 8, 16, 32]
    for stride, channels in CHANNELS.items():
        expected = tuple(side // stride for side in shape)
        assert features[stride].shape == (2, channels, *expected)
        assert features[stride].isfinite().all()


@pytest.mark.parametrize("shape", [(33, 65), (32, 48), (16, 32)])
def test_sides_that_are_no_multiple_are_refused(backbone, shape):
    with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]} pixels.*multiples of 32"):
        backbone(torch.rand(1, 3, *shape))


@pytest.mark.parametrize(("deepest", "strides"), [(4, [4]), (8, [4, 8]), (16, [4, 8, 16])])
def test_cut_off_gives_the_same_maps_up_to_there(backbone, picture, deepest, strides):
    short = load_backbone(deepest)
    assert len(short.blocks) < len(backbone.blocks)
    features = short(picture)
    assert list(features) == strides
    assert short.channels == {stride: CHANNELS[stride] for stride in strides}
    whole = backbone(picture)
    assert all(torch.equal(features[stride], whole[stride]) for stride in strides)


def test_a_block_ahead_gives_the_first_map_of_the_next_stride(backbone, picture):
    ahead = load_backbone(16, ahead=True)
    assert ahead.channels == {4: 24, 8: 40, 16: 112, 32: 192}
    features, whole = ahead(picture), backbone(picture)
    assert list(features) == [4, 8, 16, 32]
    assert torch.equal(features[16], whole[16])
    after_first = backbone.blocks[11](whole[16])
    torch.testing.assert_close(features[32], after_first, atol=1e-5, rtol=1e-5)


def test_it_is_frozen_in_evaluation_mode_and_finite(backbone):
    assert not backbone.training
    parameters = list(backbone.parameters())
    assert parameters
    for parameter in parameters:
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
    # Published: 4,652,008 with head and classifier, 2,958,848 without; each of 19,728 channels
    # loses one of two parameters when its normalisation is folded into the convolution. Kernels of
    # stride 2 are padded with zeros: of 3 x 3 and of 5 x 5.
    padding = (32 * 3 + 96 + 240) * (16 - 9) + (144 + 672) * (36 - 25)
    assert sum(p.numel() for p in parameters) == 2_958_848 - 19_728 + padding
    padded = [m for m in backbone.modules() if isinstance(m, SameConv) and m.conv.stride == (2, 2)]
    zeros = sum(
        int((m.conv.weight[:, :, 0] == 0).sum() + (m.conv.weight[:, :, 1:, 0] == 0).sum())
        for m in padded
    )
    assert zeros == padding


def test_loading_is_complete_and_repeatable(backbone, picture):
    again = load_backbone(deepest=32)
    untrained = EfficientNetLite0()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert not torch.equal(tensor, untrained.state_dict()[name]), f"{name} was not loaded"
    first, second = backbone(picture), again(picture)
    assert all(torch.equal(first[stride], second[stride]) for stride in first)


def test_an_image_does_not_change_its_neighbours_features(backbone, picture):
    alone = backbone(picture)
    both = backbone(torch.cat([picture, picture.flip(3)]))
    for stride in alone:
        torch.testing.assert_close(both[stride][:1], alone[stride], rtol=1e-4, atol=1e-3)


def test_brightness_matters_and_range_is_0_to_1(backbone, picture):
    """The backbone normalises by itself: [0, 255] input would give other features."""
    wrong = backbone(picture * 255)
    right = backbone(picture)
    assert float(torch.cosine_similarity(wrong[16], right[16], dim=1).mean()) < 0.9


@pytest.mark.parametrize("shape", [(64, 64), (34, 20), (20, 34), (8, 2)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_padding_is_one_more_below_and_to_the_right(kernel, stride, shape):
    """Of even sides, as all that this network sees."""
    generator = torch.Generator().manual_seed(0)
    published = torch.randn(6, 1, kernel, kernel, generator=generator)
    layer = SameConv(6, 6, kernel, stride, groups=6).requires_grad_(False)
    layer.conv.weight.copy_(padded_kernel(published, layer.conv.weight))
    x = torch.rand(2, 6, *shape, generator=generator)
    pads = []
    for side in reversed(shape):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    expected = F.conv2d(F.pad(x, pads), published, layer.conv.bias, stride, groups=6)
    assert expected.shape[2:] == tuple(-(-side // stride) for side in shape)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_layer_is_its_convolution(memory_format):
    layer = Pointwise(5, 9)
    x = torch.rand(2, 5, 7, 4).contiguous(memory_format=memory_format)
    assert torch.allclose(layer(x), layer.conv(x), atol=1e-6)
