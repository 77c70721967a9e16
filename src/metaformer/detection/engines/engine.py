"""Engines that compute a detector's maps with the same results: PyTorch, ONNX Runtime, OpenVINO.

Only the networks change hands. Reading, resizing, scoring and calibration stay as they are, so
results differ by the order of sums in the networks alone, and that is checked before use.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from metaformer.detection.engines.graph import UnsupportedExportError, graph_of, shipped_graph
from metaformer.detection.engines.sessions import compile_model
from metaformer.detection.scoring.anomaly_map import image_score

if TYPE_CHECKING:
    from metaformer.detection.detector import Detector

EngineName = Literal["torch", "onnxruntime", "openvino"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

MOST_SCORE_DIFFERENCE = 0.002
"""How far the score of the test image may lie from PyTorch's, in units of the distance from a
typical normal score to the threshold; 0.001 of a calibrated score, as for exported models.
Measured: below 1e-5."""
MOST_MAP_DIFFERENCE = 0.01
"""The same of each cell of its map; 0.005 of a calibrated map."""
MOST_PIXELS = 24_000_000
"""PyTorch computes the maps of larger photos: decoding them is most of the work, and the library of
another engine would bring ``predict`` above 1 GB."""


@dataclass(frozen=True)
class Engine:
    """Runs the networks of one detector."""

    name: EngineName
    run: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] at a working size -> (N, M, h, w) raw maps, blurred."""
        return self.run(images)


class EngineError(RuntimeError, ValueError):
    """An engine does not give PyTorch's results here."""


def installed_engines() -> list[EngineName]:
    """PyTorch, and what else the ``export`` extra has brought."""
    has_onnx = importlib.util.find_spec("onnx") is not None
    return [
        name
        for name in ENGINES
        if name == "torch" or (has_onnx and importlib.util.find_spec(name) is not None)
    ]


def usual_engine(detector: Detector, *, may_trace: bool) -> Engine:
    """ONNX Runtime; PyTorch where ONNX Runtime gives other results, and for several products: a
    graph computes the maps of all of them, PyTorch those of one.

    Args:
        may_trace: False leaves models to PyTorch that no graph inside the package fits.
    """
    pytorch = torch_engine(detector)
    if detector.adapted.products > 1:
        return pytorch
    try:
        if not may_trace and shipped_graph(detector.adapted) is None:
            return pytorch
        engine = make_engine(detector, "onnxruntime")
        check_engine(detector, engine)
    except UnsupportedExportError:
        return pytorch  # documented, nothing to tell
    except Exception as error:  # a broken installation must not stop what PyTorch can do
        warnings.warn(f"onnxruntime cannot be used: {error}", stacklevel=2)
        return pytorch
    return engine


def make_engine(detector: Detector, name: EngineName) -> Engine:
    """The networks of ``detector``, run by the engine ``name`` on as many threads as PyTorch has in
    the thread that computes.

    Raises:
        MissingExtraError: the engine is not installed.
        UnsupportedExportError: the detector cannot leave PyTorch.
    """
    if name == "torch":
        return torch_engine(detector)
    model = graph_of(detector.adapted, detector.model.size_multiple).SerializeToString()
    run = compile_model(model, name)
    return Engine(name, lambda images: torch.from_numpy(run(images.numpy())["raw_maps"]))


def torch_engine(detector: Detector) -> Engine:
    """One image after another: that is how a detector works in PyTorch."""

    module = detector.adapted.as_module()

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return torch.cat([module(image[None]) for image in images])

    return Engine("torch", run)


def probe_image(detector: Detector) -> Tensor:
    """(1, 3, H, W) at a working size: blotches with noise, the same every time."""
    side = max(1, round(detector.model.config.resolution / detector.model.size_multiple))
    side *= detector.model.size_multiple
    rng = np.random.default_rng(0)
    blotches = np.kron(rng.random((1, 3, 8, 8)), np.ones((1, 1, -(-side // 8), -(-side // 8))))
    noise = rng.normal(0, 0.05, (1, 3, side, side))
    pixels = np.clip(blotches[:, :, :side, :side] + noise, 0, 1)
    return torch.from_numpy(pixels.astype(np.float32))


def check_engine(detector: Detector, engine: Engine) -> None:
    """Hold an engine against PyTorch's map of the test image.

    Raises:
        EngineError: the score or the map is another.
    """
    image = probe_image(detector)
    expected_map, found_map = torch_engine(detector)(image)[0], engine(image)[0]
    share = detector.model.config.score_share
    expected, found = image_score(expected_map[0], share), image_score(found_map[0], share)
    spread = detector.calibration.spread
    furthest = float((found_map - expected_map).abs().max())
    # Written so that NaN is refused too.
    if (
        abs(found - expected) <= MOST_SCORE_DIFFERENCE * spread
        and furthest <= MOST_MAP_DIFFERENCE * spread
    ):
        return
    raise EngineError(
        f"{engine.name} gives a raw score of {found:.6g} where PyTorch gives {expected:.6g}, and "
        f"a map that is up to {furthest:.2g} off. Use --engine torch, and please report this with "
        f"the versions that `pip list` shows."
    )
