"""The graphs inside the package compute what PyTorch computes, whatever the support."""

from __future__ import annotations

import multiprocessing
from functools import cache

import numpy as np
import pytest
import torch

from metaformer import Detector, Metaformer
from metaformer.detection.engines.engine import make_engine, probe_image, torch_engine
from metaformer.detection.engines.graph import graph_of, shipped_graph
from metaformer.export.backends import with_engine
from tests.helpers import boards
from tools.trace_graphs import template_of

onnx = pytest.importorskip("onnx")
COUNTS = {"feature": (1, 2, 12), "pixel": (1, 3)}
CASES = [(preset, count) for preset, counts in COUNTS.items() for count in counts]


@cache
def detector(preset: str, count: int) -> Detector:
    """At 128 pixels: with 12 images of them the memory bank is a coreset."""
    universal = Metaformer.from_pretrained(preset, resolution=128)
    return universal.adapt([boards.good(seed) for seed in range(count)])


@pytest.mark.parametrize(("preset", "count"), CASES)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_they_give_pytorchs_maps_for_any_support_size_and_batch(preset, count, engine):
    pytest.importorskip(engine)
    made = detector(preset, count)
    assert shipped_graph(made.adapted) is not None
    computed, expected = make_engine(made, engine), torch_engine(made)
    board = torch.from_numpy(boards.defective(3)).permute(2, 0, 1)[None] / 255
    for images in (
        torch.cat([probe_image(made), probe_image(made).flip(3)]),
        torch.nn.functional.interpolate(board, (96, 160), mode="bilinear"),
    ):
        size = float(expected(images).abs().max())
        np.testing.assert_allclose(computed(images), expected(images), rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize(("preset", "count"), [("feature", 2), ("pixel", 3)])
def test_they_are_those_of_the_model_as_it_is(preset, count):
    """If this fails, the model has changed: run ``python -m tools.trace_graphs``."""
    made = detector(preset, count)
    multiple = made.model.size_multiple
    now = onnx.load_model_from_string(template_of(made.adapted.as_module(), multiple))
    kept = graph_of(made.adapted, multiple)

    def operations(model) -> list[str]:
        return sorted(node.op_type for node in model.graph.node if node.op_type != "Constant")

    assert operations(kept) == operations(now)


def test_other_settings_have_no_graph_and_stay_in_pytorch():
    aligned = Metaformer.from_pretrained(resolution=96, aligned=True).adapt([boards.good(0)])
    assert shipped_graph(aligned.adapted) is None
    assert aligned.engine.name == "torch"


def test_a_detector_computes_with_onnxruntime_unless_told_otherwise():
    made = detector("feature", 2)
    assert made.engine.name == "onnxruntime"
    pytorch = with_engine(made, "torch")
    assert pytorch.engine.name == "torch"
    image = boards.defective(7)
    assert made.predict(image).score == pytest.approx(pytorch.predict(image).score, abs=1e-5)


def test_large_photos_stay_in_pytorch(monkeypatch):
    made = Metaformer.from_pretrained(resolution=96).adapt([boards.good(0)])
    monkeypatch.setattr("metaformer.detection.detector.MOST_PIXELS", 95 * 96)
    large = made.predict(boards.defective(7))
    assert not made.has_engine
    monkeypatch.undo()
    assert made.predict(boards.defective(7)).score == pytest.approx(large.score, abs=1e-5)
    assert made.has_engine and made.engine.name == "onnxruntime"


def score_of(seed: int) -> float:
    return detector("feature", 2).predict(boards.good(seed)).raw_score


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_has_a_session_of_its_own():
    expected = score_of(30)  # the parent's session exists, and its threads stay with it
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map_async(score_of, [30]).get(timeout=60) == [expected]


def test_scores_are_the_same_on_every_run_and_after_saving(tmp_path):
    made = detector("feature", 12)
    image = boards.defective(9)
    first = made.score_pixels(image)
    made.save(tmp_path / "board.metaformer")
    for again in (made, Detector.load(tmp_path / "board.metaformer")):
        score, marked = again.score_pixels(image)
        assert score == first[0]
        np.testing.assert_array_equal(marked, first[1])
