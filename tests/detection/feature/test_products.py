"""One detector for several products reads each image as a detector of its product alone would."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metaformer import Detector, Metaformer
from metaformer.detection.adaptation import prepare
from metaformer.detection.engines.engine import make_engine
from metaformer.detection.feature.products import SeveralProducts, product_groups
from metaformer.export.backends import with_engine
from tests.detection.test_blank_frames import board, flange, uniform
from tests.helpers import boards

RESOLUTION = 128
COUNT = 4
pytestmark = pytest.mark.filterwarnings(
    "ignore::metaformer.detection.support.support_set.OddSupportWarning"
)


@cache
def universal() -> Metaformer:
    return Metaformer.from_pretrained(resolution=RESOLUTION)


def mixed(first: int = 0, count: int = COUNT) -> list[NDArray[np.uint8]]:
    """Boards and flanges in turns."""
    return [make(seed) for seed in range(first, first + count) for make in (board, flange)]


@cache
def of_both() -> Detector:
    return universal().adapt(mixed())


@cache
def of_one(product: int) -> Detector:
    return universal().adapt([(board, flange)[product](seed) for seed in range(COUNT)])


def broken(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    defective = image.copy()
    defective[60:90, 100:130] = (200, 30, 160)
    return defective


def test_products_are_told_apart_by_their_looks():
    adapted = of_both().adapted
    assert isinstance(adapted, SeveralProducts)
    assert adapted.members == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert isinstance(of_one(0).adapted, type(adapted.parts[0]))


@pytest.mark.parametrize("product", [0, 1])
def test_an_image_is_read_as_by_the_detector_of_its_product(product):
    both, one = of_both(), with_engine(of_one(product), "torch")
    unit = both.adapted.units[product]
    for image in ((board, flange)[product](50), broken((board, flange)[product](51))):
        found, expected = both.score_pixels(image), one.score_pixels(image)
        assert found[0] == pytest.approx(expected[0] / unit, rel=1e-6)
        assert np.allclose(found[1], expected[1] / unit, rtol=1e-5, atol=1e-7)


def test_good_images_pass_and_what_is_neither_product_does_not():
    detector = of_both()
    for make in (board, flange):
        assert not detector.predict(make(60)).is_anomalous
        assert detector.predict(broken(make(61))).is_anomalous
        for level in (0.0, 128.0, 255.0):
            assert detector.predict(uniform(make(0), level)).is_anomalous


def test_scores_of_all_products_count_for_the_threshold():
    scores = of_both().provenance["support_scores"]
    assert [score["index"] for score in scores] == list(range(2 * COUNT))
    for product in (0, 1):  # each product's normal images score about 1
        assert np.median([s["raw_score"] for s in scores[product::2]]) == pytest.approx(1)


def test_scores_are_the_same_after_saving_and_in_batches(tmp_path):
    detector = of_both()
    detector.save(tmp_path / "both.metaformer")
    loaded = Detector.load(tmp_path / "both.metaformer")
    images = torch.cat([boards_tensor(make(70)) for make in (board, flange)])
    module = detector.adapted.as_module()
    with torch.inference_mode():
        together = module(images)
        for number, image in enumerate(images):
            alone = detector.adapted.anomaly_maps(detector.model.prepare(image[None]))
            again = loaded.adapted.anomaly_maps(loaded.model.prepare(image[None]))
            assert torch.equal(alone, again)
            assert torch.allclose(together[number], alone, rtol=1e-4, atol=1e-5)


def boards_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """(1, 3, 128, 128) in [0, 1]."""
    return torch.from_numpy(pixels[:128, :128].copy()).permute(2, 0, 1)[None].float() / 255


def test_another_engine_reads_each_image_by_its_product():
    pytest.importorskip("onnxruntime")
    detector = of_both()
    images = torch.cat([boards_tensor(make(70)) for make in (board, flange)])
    with torch.inference_mode():
        expected = detector.adapted.as_module()(images)
    found = make_engine(detector, "onnxruntime")(images)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_pytorch_computes_them_unless_told_otherwise():
    assert with_engine(of_both(), "auto").engine.name == "torch"


def test_more_images_are_as_if_all_had_been_there():
    whole = universal().adapt([*mixed(), *mixed(COUNT, 1)])
    extended = of_both().extended_with(mixed(COUNT, 1))
    assert extended.calibration == whole.calibration
    assert extended.adapted.members == whole.adapted.members
    assert extended.predict(board(80)).raw_score == whole.predict(board(80)).raw_score


def test_a_product_may_be_added():
    both = of_one(0).extended_with([flange(seed) for seed in range(COUNT)])
    assert isinstance(both.adapted, SeveralProducts)
    assert not both.predict(flange(50)).is_anomalous


def test_more_images_where_the_earlier_are_not_kept():
    model = of_both().model.with_config(max_patches=600)
    both = Metaformer(model, "feature").adapt(mixed())
    assert isinstance(both.adapted, SeveralProducts)
    more = both.extended_with(mixed(COUNT, 2))
    assert more.info()["additions"][0]["calibration"] == "estimated"
    assert more.adapted.members == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    for make in (board, flange):
        assert not more.predict(make(60)).is_anomalous
        assert more.predict(broken(make(61))).is_anomalous


def test_two_images_are_no_product():
    few = [board(seed) for seed in range(6)] + [flange(seed) for seed in range(2)]
    prepared = [prepare(of_one(0).model, image, support_size=8) for image in few]
    assert product_groups(prepared, of_one(0).model.config) == [list(range(8))]


def test_one_product_is_not_taken_apart():
    same = [boards.good(seed, board, 128, 128) for seed in range(20) for board in ("00041025",)]
    prepared = [prepare(of_one(0).model, image, support_size=20) for image in same]
    assert product_groups(prepared, of_one(0).model.config) == [list(range(20))]


def test_info_names_the_products():
    assert "2 (4 and 4 images)" in of_both()._repr_html_()
