"""Detectors for machines without PyTorch: ``export``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metaformer.cli.shared.arguments import check_detector_argument, usual_export
from metaformer.cli.shared.options import AsJson, Quiet, clear_errors, progress_bar
from metaformer.cli.shared.screen import Ending


class FormatName(StrEnum):
    onnx = "onnx"
    openvino = "openvino"


class PrecisionName(StrEnum):
    f32 = "f32"
    bf16 = "bf16"
    int8 = "int8"


def export(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .onnx, or .xml for openvino; if unset, named after the detector, "
            "here.",
        ),
    ] = None,
    format: Annotated[FormatName, typer.Option(help="What will run it.")] = FormatName.onnx,
    precision: Annotated[
        PrecisionName,
        typer.Option(help="Of the arithmetic. bf16 and int8 are measured, and refused if poor."),
    ] = PrecisionName.f32,
    check: Annotated[
        Path | None,
        typer.Option(help="Folder of images to compare with PyTorch on; bundled photos if unset."),
    ] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Another rate than the detector was made with.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a detector as one ONNX or OpenVINO model, checked against PyTorch."""
    ending = Ending()
    with clear_errors():
        check_detector_argument("export", detector_file, [])
        output = output or usual_export(
            detector_file, ".xml" if format is FormatName.openvino else ".onnx"
        )
        from metaformer.detection.detector import Detector
        from metaformer.export.exporter import export_detector
        from metaformer.export.verification import read_check_images

        detector = Detector.load(detector_file)
        if false_alarm_rate is not None:
            detector = detector.with_false_alarm_rate(false_alarm_rate)
        images = None if check is None else read_check_images(check, detector)
        with progress_bar("checking", quiet) as on_step:
            done = export_detector(
                detector,
                output,
                format=format.value,
                precision=precision.value,
                check=images,
                on_step=on_step,
            )
        if as_json:
            files = [str(file) for file in done.files]
            typer.echo(json.dumps({"files": files, **done.metadata}, indent=2))
        elif not quiet:
            for file in done.files:
                typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
            typer.echo(done.summary)
            if format is FormatName.onnx:
                ending.say(f"score with it without PyTorch: examples/edge/score.py {output} IMAGE")
