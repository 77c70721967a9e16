"""Making detectors and looking at them: ``adapt``, ``info``, ``demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from metaformer.cli.options import (
    SOME_UNREADABLE,
    Aligned,
    AsJson,
    Backbone,
    BackboneWeights,
    Download,
    FalseAlarmRate,
    Mode,
    ModeName,
    Preset,
    PresetName,
    Quiet,
    Resolution,
    Seed,
    UniversalWeights,
    WhiteLevel,
    clear_errors,
    progress_bar,
)

NOT_WITH_ADD = {
    "preset",
    "resolution",
    "aligned",
    "backbone",
    "download",
    "mode",
    "universal_weights",
    "seed",
}
"""Parameters of ``adapt`` that a detector to be extended has settled."""


def adapt(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of normal images; 1 is enough.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Detector file to write.")],
    add: Annotated[
        Path | None,
        typer.Option(
            metavar="DETECTOR",
            help="Extend this detector instead of starting over; its own file stays as it is.",
        ),
    ] = None,
    preset: Preset = PresetName.feature,
    resolution: Resolution = None,
    aligned: Aligned = False,
    backbone: Backbone = "efficientnet_lite0",
    backbone_weights: BackboneWeights = None,
    download: Download = False,
    mode: Mode = ModeName.fast,
    universal_weights: UniversalWeights = None,
    false_alarm_rate: FalseAlarmRate = 0.05,
    white_level: WhiteLevel = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Adapt to a product from a few normal images."""
    with clear_errors():
        if not output.parent.is_dir():
            raise FileNotFoundError(
                f"{output}: its folder {output.parent} does not exist. Create it first."
            )
        if output.is_dir():
            raise IsADirectoryError(
                f"{output}: a folder. Give a file, {output / 'product.metaformer'} for example."
            )
        from metaformer.detection.detector import Detector, Metaformer
        from metaformer.io.folders import PASSED_OVER, list_omissions

        if add is not None:
            given = given_options(context)
            refused = given & NOT_WITH_ADD
            if refused:
                raise ValueError(
                    f"{', '.join(f'--{name}' for name in sorted(refused))}: with --add the "
                    f"detector's own is used. Leave it out, or adapt to all images from the start."
                )
            known = Detector.load(add, backbone_weights=backbone_weights)
            rate = false_alarm_rate if "false_alarm_rate" in given else None
            with progress_bar("adapting", quiet) as on_step:
                detector = known.extended_with(
                    folder, false_alarm_rate=rate, white_level=white_level, on_step=on_step
                )
        else:
            universal = Metaformer.from_pretrained(
                preset.value,
                resolution=resolution,
                aligned=aligned,
                backbone=backbone,
                backbone_weights=backbone_weights,
                download=download,
                mode=mode.value,
                universal_weights=universal_weights,
            )
            with progress_bar("adapting", quiet) as on_step:
                detector = universal.adapt(
                    folder,
                    false_alarm_rate=false_alarm_rate,
                    seed=seed,
                    white_level=white_level,
                    on_step=on_step,
                )
        detector.save(output)
        if as_json:
            typer.echo(json.dumps({"detector": str(output), **detector.info()}, indent=2))
        elif not quiet:
            count = len(detector.made["support"])
            typer.echo(f"{output}: adapted to {count} normal image{'s' if count > 1 else ''}.")
            if add is not None:
                typer.echo(describe_addition(detector.made["additions"][-1]))
            if detector.made["white_level"] is not None:
                typer.echo(f"White of 16-bit images: {detector.made['white_level']}.")
            typer.echo(detector.guarantee)
        omitted = [o for o in list_omissions(folder) if o.category != PASSED_OVER]
        if omitted:
            if not quiet:
                typer.echo(f"{len(omitted)} files of {folder} not used.", err=True)
            raise typer.Exit(SOME_UNREADABLE)


def given_options(context: typer.Context) -> set[str]:
    """Parameters that stand on the command line, whatever their values."""
    return {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
    }


def describe_addition(addition: dict[str, Any]) -> str:
    """What adding images has done to the threshold."""
    added = f"{addition['count']} of them new"
    if addition["calibration"] == "recomputed":
        return f"{added}; the same as adapting to all of them at once."
    return f"{added}; the detector does not hold enough of the earlier ones to score them again."


def info(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
    backbone_weights: BackboneWeights = None,
) -> None:
    """How a detector was made and what its threshold promises, as JSON."""
    with clear_errors():
        from metaformer.detection.detector import Detector

        typer.echo(
            json.dumps(
                Detector.load(detector_file, backbone_weights=backbone_weights).info(), indent=2
            )
        )


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "demo-report"
    ),
    quiet: Quiet = False,
) -> None:
    """Adapt to bundled photos of good products, find the defects in others, write a report."""
    with clear_errors():
        from metaformer.inference.demo import run_demo

        with progress_bar("demo", quiet) as on_step:
            report = run_demo(output, on_step)
        typer.echo(f"report: {report}")
