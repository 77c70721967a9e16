"""ONNX models made ready to run, by ONNX Runtime or by OpenVINO.

Whatever the runtime, a model is a function from the input array to its outputs by name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metaformer.io.extras import need

Runtime = Literal["onnxruntime", "openvino"]
Precision = Literal["f32", "bf16", "int8"]
RunModel = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]


class PrecisionError(ValueError):
    """The processor cannot compute in the precision that was asked for."""


def compile_model(
    model: bytes | Path,
    runtime: Runtime,
    *,
    precision: Precision = "f32",
    threads: int | None = None,
    shape: Sequence[int] | None = None,
) -> RunModel:
    """Load a model.

    Args:
        model: an ONNX model, encoded or in a file; for OpenVINO also an .xml file.
        precision: of the arithmetic that was not fixed in the file; OpenVINO can do ``bf16``.
        threads: processors to use; None for as many as PyTorch has, in ONNX Runtime those of the
            thread that computes.
        shape: the only shape of the input that will be given, if there is one. OpenVINO takes a
            seventh less time for it; ONNX Runtime makes no difference.

    Raises:
        MissingExtraError: the runtime is not installed.
        PrecisionError: this processor has no bf16.
    """
    if runtime == "onnxruntime":
        return compile_onnxruntime(model, threads)
    return compile_openvino(model, threads, precision, shape)


def compile_onnxruntime(model: bytes | Path, threads: int | None) -> RunModel:
    onnxruntime = need("onnxruntime")
    source = model if isinstance(model, bytes) else str(model)
    # A forked process has none of the threads that a session of its parent waits for. The parent's
    # session is kept, since closing it waits for them, too.
    sessions: dict[tuple[int, int], Any] = {}
    one_at_a_time = threading.Lock()

    def session() -> Any:
        key = (os.getpid(), threads or torch.get_num_threads())
        if key in sessions:
            return sessions[key]
        with one_at_a_time:
            if key not in sessions:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = key[1]
                # Threads that go on spinning after a run hold up the steps before and after it.
                options.add_session_config_entry("session.force_spinning_stop", "1")
                options.log_severity_level = 3
                providers = ["CPUExecutionProvider"]
                sessions[key] = onnxruntime.InferenceSession(source, options, providers=providers)
            return sessions[key]

    (given,) = session().get_inputs()
    names = [output.name for output in session().get_outputs()]

    def run(images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session().run(names, {given.name: images}), strict=True))

    return run


def compile_openvino(
    model: bytes | Path, threads: int | None, precision: Precision, shape: Sequence[int] | None
) -> RunModel:
    openvino = need("openvino")
    settings: dict[str, Any] = {
        # Without this OpenVINO computes in bf16 wherever the processor can, and scores move.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    core = openvino.Core()
    if precision == "bf16":
        check_bf16(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    network = core.read_model(model)
    if shape is not None:
        network.reshape(list(shape))
    compiled = core.compile_model(network, "CPU", settings)
    one_at_a_time = threading.Lock()

    def run(images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with one_at_a_time:
            results = compiled(np.ascontiguousarray(images))
            # An output can have several names, and which one comes first is not ours to say.
            return {
                name: np.array(results[output])
                for output in compiled.outputs
                for name in output.get_names()
            }

    return run


def check_bf16(capabilities: Sequence[str]) -> None:
    """Raises: PrecisionError: the processor has no bf16.

    OpenVINO then computes in float32 without a word, and a measurement would find no cost.
    """
    if "BF16" not in capabilities:
        raise PrecisionError(
            f"this processor cannot compute in bf16 (OpenVINO names {', '.join(capabilities)}), so "
            f"what bf16 costs cannot be measured here. Export on a machine like the one that will "
            f"run the model, or use --precision f32."
        )


def versions(runtime: Runtime) -> dict[str, str]:
    """Installed versions of what an exported file was made and checked with."""
    return {name: str(need(name).__version__) for name in ("onnx", runtime)}
