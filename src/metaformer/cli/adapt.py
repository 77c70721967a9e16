"""Making detectors and looking at them: ``adapt``, ``info``, ``demo``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from metaformer.cli.shared.arguments import (
    check_detector_argument,
    check_support_arguments,
    refuse_pipe,
    usual_detector,
)
from metaformer.cli.shared.options import (
    SOME_UNREADABLE,
    Aligned,
    AsJson,
    Backbone,
    BackboneWeights,
    Device,
    Download,
    Every,
    FalseAlarmRate,
    Lists,
    Mode,
    ModeName,
    Preset,
    PresetName,
    Quiet,
    Recursive,
    Resolution,
    Seed,
    UniversalWeights,
    WhiteLevel,
    clear_errors,
    progress_bar,
)
from metaformer.cli.shared.screen import Ending, command_line, show_table, tell

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
SHOWN = 5
"""Files that are not used, and named on the screen."""


def adapt(
    context: typer.Context,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Normal images: folders, files, zip or tar archives, videos, addresses, or @LIST. "
            "1 image is enough."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Detector file to write; if unset, named after the images, here."
        ),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(
            metavar="DETECTOR",
            help="Extend this detector instead of starting over; its own file stays as it is.",
        ),
    ] = None,
    lists: Lists = None,
    recursive: Recursive = False,
    every: Every = 1,
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
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Adapt to a product from a few normal images."""
    ending = Ending()
    with clear_errors():
        arguments = [*(images or []), *(f"@{path}" for path in lists or [])]
        if not arguments:
            raise typer.BadParameter(
                "missing. Name images or folders, or a list with --list.", param_hint="IMAGES"
            )
        check_support_arguments(arguments)
        if add is not None:
            refuse_pipe(add)
        output = output or usual_detector(arguments, add)
        if not output.parent.is_dir():
            raise FileNotFoundError(
                f"{output}: its folder {output.parent} does not exist. Create it first."
            )
        if output.is_dir():
            raise IsADirectoryError(
                f"{output}: a folder. Give a file, {output / 'product.metaformer'} for example."
            )
        from metaformer.detection.detector import Detector
        from metaformer.detection.metaformer import Metaformer
        from metaformer.detection.summary import products_in_words
        from metaformer.detection.support.given_images import list_support, warn_about_omissions
        from metaformer.io.omissions import SKIPPED
        from metaformer.io.sources.shards import Sources

        support, omissions = list_support(Sources(tuple(arguments), recursive, every))
        warn_about_omissions(omissions)
        if add is not None:
            given = given_options(context)
            refused = given & NOT_WITH_ADD
            if refused:
                raise ValueError(
                    f"{', '.join(f'--{name}' for name in sorted(refused))}: with --add the "
                    f"detector's own is used. Leave it out, or adapt to all images from the start."
                )
            known = Detector.load(add, backbone_weights=backbone_weights, device=device)
            rate = false_alarm_rate if "false_alarm_rate" in given else None
            with progress_bar("adapting", quiet) as on_step:
                detector = known.extended_with(
                    support, false_alarm_rate=rate, white_level=white_level, on_step=on_step
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
                device=device,
            )
            with progress_bar("adapting", quiet) as on_step:
                detector = universal.adapt(
                    support,
                    false_alarm_rate=false_alarm_rate,
                    seed=seed,
                    white_level=white_level,
                    on_step=on_step,
                )
        detector.save(output)
        if as_json:
            omitted = [asdict(omission) for omission in omissions]
            told = {"detector": str(output), "omitted": omitted, **detector.info()}
            typer.echo(json.dumps(told, indent=2))
        elif not quiet:
            count = len(detector.provenance["support"])
            typer.echo(f"{output}: adapted to {count} normal image{'s' if count > 1 else ''}.")
            if products := products_in_words(detector.info()["settings"]):
                typer.echo(f"Products found: {products}; each has a model of its own.")
            if add is not None:
                typer.echo(describe_addition(detector.provenance["additions"][-1]))
            if detector.provenance["white_level"] is not None:
                typer.echo(f"White of 16-bit images: {detector.provenance['white_level']}.")
            typer.echo(detector.guarantee)
            ending.say(command_line("predict", output, "FOLDER"), command_line("info", output))
        not_used = [o.path for o in omissions if o.category != SKIPPED]
        if not_used:
            if not quiet:
                tell(describe_not_used(not_used))
            raise typer.Exit(SOME_UNREADABLE)


def describe_not_used(paths: Sequence[str]) -> str:
    """How many files were not used, and the names of the first."""
    names = ", ".join(Path(path).name for path in paths[:SHOWN])
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{len(paths)} file{'' if len(paths) == 1 else 's'} not used: {names}{more}."


def given_options(context: typer.Context) -> set[str]:
    """Names of the parameters that were given on the command line."""
    return {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
    }


def describe_addition(addition: dict[str, Any]) -> str:
    """How adding images changed the threshold, for people."""
    added = f"{addition['count']} of them new"
    if addition["calibration"] == "recomputed":
        return f"{added}; the same as adapting to all of them at once."
    return f"{added}; the detector does not hold enough of the earlier ones to score them again."


def info(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
    backbone_weights: BackboneWeights = None,
    as_json: AsJson = False,
) -> None:
    """How a detector was made and what its threshold promises.

    A table on a terminal; JSON where the output goes to a file or another program, or with --json.
    """
    ending = Ending()
    with clear_errors():
        check_detector_argument("info", detector_file, [])
        from metaformer.detection.detector import Detector
        from metaformer.detection.summary import summary_rows

        found = Detector.load(detector_file, backbone_weights=backbone_weights).info()
        if as_json or not sys.stdout.isatty():
            typer.echo(json.dumps(found, indent=2))
            return
        size = f"{detector_file} ({detector_file.stat().st_size / 1e6:.1f} MB)"
        show_table([("detector", size), *summary_rows(found)])
        ending.say(command_line("predict", detector_file, "FOLDER"))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "demo-report"
    ),
    quiet: Quiet = False,
) -> None:
    """Adapt to bundled photos of good products, find the defects in others, write a report."""
    ending = Ending()
    with clear_errors():
        from metaformer.inference.demo import run_demo

        with progress_bar("demo", quiet) as on_step:
            done = run_demo(output, on_step)
        if not quiet:
            typer.echo(done.summary)
            for picture in done.pictures:
                typer.echo(f"  {picture}")
        typer.echo(f"report: {done.report}")
        if not quiet:
            ending.say(
                f"open {done.report} in a browser", command_line("adapt", "FOLDER_OF_GOOD_PHOTOS")
            )
