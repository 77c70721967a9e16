from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metaformer.networks.efficientnet import EfficientNetLite0, Pointwise, SameConv, load_backbone
from tests.helpers import boards

CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}

# Channels 0 to 5 at row 2, column 3 of each map of the picture below, and the map's standard
# deviation, by the publisher's own network in full precision (`tools/convert_backbone.py`
# compares whole maps and classes).
PUBLISHED = {
    4: ([-3.033, -0.206, 16.492, -22.198, -6.205, 17.611], 12.646),
    8: ([-17.942, 18.745, -1.591, -3.063, -1.255, 8.997], 12.590),
    16: ([-5.127, -0.444, -6.066, 3.926, 6.167, -4.234], 7.000),
    32: ([-2.939, 1.984, 5.889, 0.253, 2.466, 6.449], 2.552),
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
        assert features[stride][0, :6, 2, 3].tolist() == pytest.approx(values, abs=0.1)
        assert float(features[stride].std()) == pytest.approx(deviation, rel=0.005)


@pytest.mark.parametrize("shape", [(64, 64), (128, 96), (33, 65), (17, 31), (8, 200)])
def test_strides_and_channels_for_any_size(backbone, shape):
    features = backbone(torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)))
    assert list(features) == [4, 8, 16, 32]
    for stride, channels in CHANNELS.items():
        expected = tuple(-(-side // stride) for side in shape)  # rounded up
        assert features[stride].shape == (2, channels, *expected)
        assert features[stride].isfinite().all()


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
    # loses one of two parameters when its normalisation is folded into the convolution.
    assert sum(p.numel() for p in parameters) == 2_958_848 - 19_728


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


@pytest.mark.parametrize("shape", [(64, 64), (33, 20), (20, 33), (7, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_padding_is_one_more_below_and_to_the_right(kernel, stride, shape):
    layer = SameConv(6, 6, kernel, stride, groups=6)
    x = torch.rand(2, 6, *shape)
    pads = []
    for side in reversed(shape):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    expected = layer.conv(F.pad(x, pads))
    assert expected.shape[2:] == tuple(-(-side // stride) for side in shape)
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_layer_is_its_convolution(memory_format):
    layer = Pointwise(5, 9)
    x = torch.rand(2, 5, 7, 4).contiguous(memory_format=memory_format)
    assert torch.allclose(layer(x), layer.conv(x), atol=1e-6)
