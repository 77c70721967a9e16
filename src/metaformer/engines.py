"""What computes a detector's maps: PyTorch, ONNX Runtime or OpenVINO, with the same results.

Only the networks change hands. Reading, resizing, scoring and calibration stay as they are, so
results differ by the order of sums in the networks alone, and that is checked before use.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metaformer.adaptation import raw_map
from metaformer.detector import Detector
from metaformer.onnx_detector import map_model
from metaformer.onnx_maps import UnsupportedExportError
from metaformer.preprocess import image_score
from metaformer.runtimes import Runtime, compile_model

EngineName = Literal["torch", "onnxruntime", "openvino"]
ENGINES: tuple[EngineName, ...] = ("torch", "onnxruntime", "openvino")
Engine = Callable[[Tensor], Tensor]
"""(N, 3, H, W) float32 in [0, 1] at a working size -> (N, h, w) raw maps, blurred."""

MOST_DIFFERENCE = 0.002
"""How far the score of the test image may lie from PyTorch's, in units of the distance from a
typical normal score to the threshold. Measured: below 1e-5."""
ROUNDS = 5
"""Timed passes of each engine when the fastest is looked for; they take turns."""

_fastest: dict[tuple[object, ...], EngineName] = {}
"""What was found fastest in this process, for each kind of detector."""


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


def make_engine(detector: Detector, name: EngineName) -> Engine:
    """The networks of ``detector``, run by the engine ``name`` on as many threads as PyTorch.

    Raises:
        MissingExtraError: the engine is not installed.
    """
    if name == "torch":
        return torch_engine(detector)
    runtime: Runtime = name
    model = map_model(detector).SerializeToString()
    run = compile_model(model, runtime, threads=torch.get_num_threads())
    return lambda images: torch.from_numpy(run(images.numpy())["raw_map"])


def torch_engine(detector: Detector) -> Engine:
    """One image after another: that is how a detector works in PyTorch."""

    def run(images: Tensor) -> Tensor:
        model, adapted = detector.model, detector.adapted
        return torch.stack([raw_map(model, adapted, model.prepare(x[None])) for x in images])

    return run


def with_engine(detector: Detector, name: str) -> Detector:
    """The same detector, computed by ``name``; ``auto`` measures which is fastest here.

    Raises:
        MissingExtraError: the engine is not installed.
        EngineError: its results are not those of PyTorch.
        UnsupportedExportError: the detector cannot leave PyTorch (``auto`` then stays there).
        ValueError: no such engine.
    """
    chosen = next((known for known in ENGINES if known == name), None)
    if name == "auto":
        chosen = fastest_engine(detector)
    if chosen is None:
        raise ValueError(f'no engine "{name}": choose auto, {", ".join(ENGINES)}.')
    same = Detector(detector.model, detector.adapted, detector.calibration, detector.made)
    if chosen != "torch":
        same.engine = make_engine(detector, chosen)
        check_engine(detector, chosen, same.engine)
    return same


def fastest_engine(detector: Detector) -> EngineName:
    """The installed engine with the shortest median of ``ROUNDS`` passes of one image.

    Measured once a process for each kind of detector. Engines take turns, so that whatever else
    the machine does disturbs all of them.
    """
    installed = installed_engines()
    _, settings = detector.adapted.state()
    kind = (str(settings), torch.get_num_threads(), *installed)
    if kind not in _fastest:
        try:
            engines = {name: make_engine(detector, name) for name in installed}
        except UnsupportedExportError:
            return "torch"
        seconds: dict[EngineName, list[float]] = {name: [] for name in installed}
        image = test_image(detector)
        for round in range(ROUNDS + 1):
            for name, engine in engines.items():
                started = time.perf_counter()
                engine(image)
                if round > 0:  # the first pass plans memory; not counted
                    seconds[name].append(time.perf_counter() - started)
        _fastest[kind] = min(installed, key=lambda name: statistics.median(seconds[name]))
    return _fastest[kind]


def test_image(detector: Detector) -> Tensor:
    """(1, 3, H, W) at a working size: blotches with noise, the same every time."""
    side = max(1, round(detector.model.config.resolution / detector.model.size_multiple))
    side *= detector.model.size_multiple
    rng = np.random.default_rng(0)
    blotches = np.kron(rng.random((1, 3, 8, 8)), np.ones((1, 1, -(-side // 8), -(-side // 8))))
    noise = rng.normal(0, 0.05, (1, 3, side, side))
    pixels = np.clip(blotches[:, :, :side, :side] + noise, 0, 1)
    return torch.from_numpy(pixels.astype(np.float32))


def check_engine(detector: Detector, name: EngineName, engine: Engine) -> None:
    """Raises: EngineError: the test image's score is not PyTorch's."""
    image, share = test_image(detector), detector.model.config.score_share
    expected = image_score(torch_engine(detector)(image)[0], share)
    found = image_score(engine(image)[0], share)
    if abs(found - expected) <= MOST_DIFFERENCE * detector.calibration.spread:
        return
    raise EngineError(
        f"{name} gives a raw score of {found:.6g} where PyTorch gives {expected:.6g}. Use "
        f"--engine torch, and please report this with the versions that `pip list` shows."
    )
