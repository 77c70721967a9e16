"""A detector as one file for ONNX Runtime or OpenVINO, checked against PyTorch before written."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metaformer.detection.detector import Detector
from metaformer.detection.engines.sessions import Precision, Runtime, compile_model, versions
from metaformer.export.onnx.detector import full_model
from metaformer.export.verification import (
    ENLARGED,
    LEAST_IMAGES,
    MAP_TOLERANCE,
    SCORE_TOLERANCE,
    Differences,
    Image,
    bundled_images,
    compare,
    measure,
    refuse_if_poor,
    refuse_if_wrong,
    with_defects,
    with_other_sizes,
)
from metaformer.io.atomic_files import atomic_path, write_bytes
from metaformer.io.extras import need

Format = Literal["onnx", "openvino"]
FORMATS: tuple[Format, ...] = get_args(Format)
RUNTIME: dict[Format, Runtime] = {"onnx": "onnxruntime", "openvino": "openvino"}
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml"}
KEPT_SHARE = 1 / 3
"""Of the plain convolutions, counted from the image on: these stay in float32. With all of them in
8 bits scores moved by up to 0.6, most of it by the first; with this third kept, by about 0.01
(``docs/edge.md``)."""
FORMAT_VERSION = 1
"""Raised whenever inputs, outputs or metadata change their meaning."""


@dataclass(frozen=True)
class Export:
    """An exported file and its checks."""

    files: tuple[Path, ...]
    differences: Differences
    """From PyTorch: of the float32 model on the check images at several sizes, or of the model of
    lower precision on the check images with and without drawn defects."""
    metadata: dict[str, Any]

    @property
    def summary(self) -> str:
        """Result of the check, for people."""
        d, precision = self.differences, self.metadata["precision"]
        text = (
            f"Compared with PyTorch on {d.images} images: scores differ by at most "
            f"{d.max_score:.2g}, maps by at most {d.max_map:.2g} (0.5 is the threshold), "
            f"{d.verdicts} verdicts changed."
        )
        if precision != "f32" and d.order_kept is not None:
            text += f" {d.order_kept:.1%} of the pairs clearly apart kept their order."
        if self.metadata["runtime"] == "openvino":
            hint = "bf16" if precision == "bf16" else "f32"
            text += (
                f"\nLoad it with INFERENCE_PRECISION_HINT set to {hint}: by itself OpenVINO "
                f"computes in bf16 on processors that can, and the scores are others."
            )
        return text


def export_detector(
    detector: Detector,
    output: Path,
    *,
    format: Format = "onnx",
    precision: Precision = "f32",
    check: Sequence[Image] | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Export:
    """Write a detector as one model: uint8 pixels in, calibrated scores and maps out.

    The model takes any number of images of any one size; resizing, threshold and calibration are
    inside. ``onnx`` is one file, ``openvino`` is ``output`` and a .bin with the weights beside it.

    Args:
        output: file to write, ending in .onnx or .xml.
        precision: ``f32``; ``bf16`` (openvino, a setting stored in the file that the program which
            loads it must apply) or ``int8`` (most convolutions, with ranges of what they see on
            ``check``).
        check: images (H, W, 3) uint8 RGB to compare on; bundled photos if None. Lower precision
            needs ``LEAST_IMAGES`` of the product.

    Raises:
        ExportRefusedError: the model does not say what PyTorch says, or lower precision costs too
            much; nothing is written.
        PrecisionError: this processor has no bf16, so its cost cannot be measured.
        MissingExtraError: a package of the ``export`` extra is not installed.
        ValueError: a combination that does not exist, a wrong ending, too few images.
        OSError: the file cannot be written.
    """
    check_request(output, format, precision, check)
    runtime = RUNTIME[format]
    images = list(check) if check is not None else bundled_images()
    metadata = describe(detector, runtime, precision)
    model = full_model(detector)

    run = compile_model(model.SerializeToString(), runtime)
    comparisons = compare(detector, run, with_other_sizes(detector, images), on_step)
    refuse_if_wrong(comparisons)
    differences = measure(comparisons)
    if precision != "f32":
        if precision == "int8":
            model = quantise(model, images)
        run = compile_model(model.SerializeToString(), runtime, precision=precision)
        differences = measure(compare(detector, run, with_defects(images), on_step))
        refuse_if_poor(differences, precision)
    metadata["check"] = {
        "images": "given" if check is not None else "bundled with metaformer",
        "tolerance": {"score": SCORE_TOLERANCE, "map": MAP_TOLERANCE, "enlarged": ENLARGED},
        "differences": asdict(differences),
    }
    if format == "onnx":
        files = write_onnx(model, output, metadata)
    else:
        files = write_openvino(model, output, metadata)
    return Export(files, differences, metadata)


def check_request(
    output: Path, format: Format, precision: Precision, check: Sequence[Image] | None
) -> None:
    """Raises: ValueError, FileNotFoundError: what was asked for cannot be done."""
    if format not in FORMATS:
        raise ValueError(f'no format "{format}": choose {" or ".join(FORMATS)}.')
    if precision not in ("f32", "bf16", "int8"):
        raise ValueError(f'no precision "{precision}": choose f32, bf16 or int8.')
    if output.suffix != SUFFIX[format]:
        raise ValueError(
            f"{output}: found the ending {output.suffix or '(none)'}; a file for {format} must end "
            f"in {SUFFIX[format]}."
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"{output}: its folder {output.parent} does not exist. Create it first."
        )
    if precision == "bf16" and format == "onnx":
        raise ValueError(
            "ONNX Runtime cannot compute convolutions in bf16 on a CPU. Choose --format openvino, "
            "or --precision int8."
        )
    if check is not None and not check:
        raise ValueError("no check images: give at least one.")
    if precision != "f32" and (check is None or len(check) < LEAST_IMAGES):
        found = "none" if check is None else str(len(check))
        raise ValueError(
            f"{precision} loses accuracy, and how much must be measured on your product: it needs "
            f"at least {LEAST_IMAGES} images of it, found {found}. Give a folder of normal images "
            f"with --check."
        )


def describe(detector: Detector, runtime: Runtime, precision: Precision) -> dict[str, Any]:
    """Metadata of the exported file, ready for JSON."""
    calibration = detector.calibration
    return {
        "format": "metaformer-export",
        "format_version": FORMAT_VERSION,
        "runtime": runtime,
        "precision": precision,
        "threshold": calibration.threshold,
        "pixel_threshold": calibration.pixel_threshold,
        "calibration": asdict(calibration),
        "guarantee": calibration.guarantee,
        "detector": detector.info(),
        "exported_by": {"metaformer-ad": version("metaformer-ad"), **versions(runtime)},
    }


def write_onnx(model: Any, output: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
    need("onnx").helper.set_model_props(model, {"metaformer": json.dumps(metadata)})
    write_bytes(output, model.SerializeToString())
    return (output,)


def write_openvino(model: Any, output: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
    openvino = need("openvino")
    network = openvino.Core().read_model(model.SerializeToString())
    network.set_rt_info(json.dumps(metadata), "metaformer")
    weights = output.with_suffix(".bin")
    # The weights are moved into place first: the .xml that makes them a model appears last.
    with atomic_path(output) as temporary_xml, atomic_path(weights) as temporary_bin:
        # Not openvino.save_model: it stores weights as 16-bit numbers unless told otherwise.
        openvino.serialize(network, str(temporary_xml), str(temporary_bin))
    return output, weights


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Without onnxruntime's advice to its programmers, which it logs as warnings of the root."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


class CalibrationImages:
    """Images one by one, as onnxruntime asks for them."""

    def __init__(self, images: Sequence[Image]) -> None:
        self.remaining = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self.remaining, None)
        return None if image is None else {"images": image[None]}


def quantise(model: Any, images: Sequence[Image]) -> Any:
    """The model with most of its convolutions in 8 bits, ranges taken from ``images``."""
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    # One input channel: depthwise, and the blur of the finished map. They stay as they are.
    plain = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and shapes[node.input[1]][1] > 1
    ]
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "f32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, before)
        with quiet_logging():
            quantization.quantize_static(
                before,
                after,
                CalibrationImages(images),
                per_channel=True,
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=plain[round(KEPT_SHARE * len(plain)) :],
            )
        return onnx.load(after)
