"""Forked workers, multiprocessing's usual way on Linux, compute as their parent does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FORKED = """
import multiprocessing, sys
import cv2, numpy as np, torch
from tests.helpers import boards
from metaformer.inference.batch import score_images

detector, image = boards.detector(), boards.defective(3)
folder, photos = sys.argv[1], boards.write_mixed(__import__("pathlib").Path(sys.argv[1], "in"), 3)
before = torch.get_num_threads(), cv2.getNumThreads()
expected = detector.predict(image).raw_score  # the parent's pools of threads are at work

def score(number):
    if number == 2:
        return list(detector.predict_many([image] * 3, workers=2))[-1].raw_score
    if number == 3:
        from pathlib import Path
        return score_images(detector, [photos], Path(folder, "out"), workers=2).scored
    return detector.predict(image).raw_score

with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(score, range(4)).get(timeout=60)
assert np.allclose(found[:3], expected, rtol=1e-4), (found, expected)
assert found[3] == 3
assert (torch.get_num_threads(), cv2.getNumThreads()) == before
assert np.isclose(detector.predict(image).raw_score, expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_detector_computes_in_forked_workers(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
