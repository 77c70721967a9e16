"""An exported frame check refuses the same frames of a batch as PyTorch does."""

from __future__ import annotations

import pytest
import torch

from metaformer.detection.engines.engine import (
    EngineName,
    make_engine,
    probe_image,
    torch_engine,
)
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.metaformer import Metaformer
from metaformer.networks.feature_maps import with_detail
from tests.helpers import boards


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_with_as_many_frames_as_support_images_each_frame_has_its_own_verdict(
    engine: EngineName,
) -> None:
    pytest.importorskip(engine)
    detector = Metaformer.from_pretrained(resolution=96).adapt([boards.good(s) for s in range(2)])
    assert isinstance(detector.adapted, AdaptedFeature)
    frame = detector.adapted.frame
    assert frame is not None
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 96, 96, generator=generator)
    images = torch.cat([noise, probe_image(detector)])
    with torch.inference_mode():
        features = with_detail(detector.adapted.backbone(images), images)
        distances = frame.distances(frame.statistics(features)).amin(1).tolist()
    frame.limit = torch.tensor(sum(distances) / 2)  # one of the two is refused
    expected = [bool(maps[0].min() >= frame.level) for maps in torch_engine(detector)(images)]
    assert sorted(expected) == [False, True]
    found = make_engine(detector, engine)(images)
    assert [bool(maps[0].min() >= 0.999 * frame.level) for maps in found] == expected
