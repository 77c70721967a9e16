"""The ``metaformer`` command.

Nothing heavy is imported before a command runs: ``metaformer --help`` must answer at once.

Exit codes: 0 all done; 1 nothing could be done, the message says why; 2 the command line is
wrong; 3 done, but some images could not be read and are listed; 130 stopped by Ctrl-C, what was
finished is on disk.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

SOME_UNREADABLE = 3
INTERRUPTED = 130

app = typer.Typer(
    name="metaformer",
    help="Find defects in images when all you have is a handful of good ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Public data sets for benchmarking.", no_args_is_help=True)
app.add_typer(data_app, name="data")
pretrain_app = typer.Typer(help="Train what is shipped with the package.", no_args_is_help=True)
app.add_typer(pretrain_app, name="pretrain")


class PresetName(StrEnum):
    feature = "feature"
    pixel = "pixel"


Preset = Annotated[PresetName, typer.Option(help="Which universal model to adapt.")]
Resolution = Annotated[
    int | None,
    typer.Option(help="Working size in pixels; more finds smaller defects. The preset's if unset."),
]
Aligned = Annotated[
    bool, typer.Option(help="Parts stand in the same place on every image: compare by place.")
]
FalseAlarmRate = Annotated[
    float, typer.Option(help="Share of good parts that may be flagged, between 0 and 1.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no chatter.")]
AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Expected errors end as one readable line and exit code 1, warnings as one line each.

    Whatever is a mistake of ours still shows its traceback.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        typer.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except BrokenPipeError:  # the reader of our output has gone; ``main`` knows
            raise
        except (ValueError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def progress_bar(label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; yields the function that moves it to (done, total)."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@app.command()
def adapt(
    folder: Annotated[Path, typer.Argument(help="Folder of normal images; 1 is enough.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Detector file to write.")],
    preset: Preset = PresetName.feature,
    resolution: Resolution = None,
    aligned: Aligned = False,
    false_alarm_rate: FalseAlarmRate = 0.05,
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
        from metaformer.detector import Metaformer

        universal = Metaformer.from_pretrained(preset.value, resolution=resolution, aligned=aligned)
        with progress_bar("adapting", quiet) as on_step:
            detector = universal.adapt(
                folder, false_alarm_rate=false_alarm_rate, seed=seed, on_step=on_step
            )
        detector.save(output)
        if as_json:
            typer.echo(json.dumps({"detector": str(output), **detector.info()}, indent=2))
        elif not quiet:
            count = len(detector.made["support"])
            typer.echo(f"{output}: adapted to {count} normal image{'s' if count > 1 else ''}.")
            typer.echo(detector.calibration.guarantee)


@app.command()
def predict(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for scores.csv, maps/, report.html.")
    ],
    recursive: Annotated[bool, typer.Option(help="Look into sub-folders too.")] = False,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Another rate than the detector was made with.")
    ] = None,
    maps: Annotated[bool, typer.Option(help="Write a heat map for each image.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace results of another run.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score images and mark their defects. Stopped and started again, it goes on."""
    with clear_errors():
        from metaformer.batch import score_images
        from metaformer.detector import Detector
        from metaformer.images import list_images

        paths: list[Path] = []
        for path in images:
            paths += list_images(path, recursive=recursive) if path.is_dir() else [path]
        # Named twice is scored once; and the maps of an earlier run are not images to score.
        maps_folder = (output / "maps").resolve()
        paths = [p for p in dict.fromkeys(paths) if not p.resolve().is_relative_to(maps_folder)]
        if not paths:
            raise ValueError(
                f"{', '.join(map(str, images))}: no images in this folder"
                f"{'' if recursive else ' (--recursive looks into sub-folders too)'}."
            )
        detector = Detector.load(detector_file)
        if false_alarm_rate is not None:
            detector = detector.with_false_alarm_rate(false_alarm_rate)
        predictions: list[dict[str, Any]] = []
        with progress_bar("scoring", quiet) as on_step:
            count = 0

            def on_image(path: Path, outcome: Any) -> None:
                nonlocal count
                count += 1
                on_step(count, len(paths))
                if as_json and not isinstance(outcome, str):
                    predictions.append(outcome.to_dict())

            result = score_images(
                detector, paths, output, write_maps=maps, overwrite=overwrite, on_image=on_image
            )
    if as_json:
        listed = [{"path": str(path), "reason": reason} for path, reason in result.failures]
        summary = {
            "scored": result.scored,
            "anomalous": result.anomalous,
            "of_earlier_runs": result.resumed,
            "interrupted": result.interrupted,
            "failures": listed,
            "predictions": predictions,
        }
        typer.echo(json.dumps(summary, indent=2))
    for path, reason in result.failures:
        typer.echo(
            f"not scored: {reason if str(path) in reason else f'{path}: {reason}'}", err=True
        )
    if not quiet and not as_json:
        earlier = f" ({result.resumed} of them before)" if result.resumed else ""
        typer.echo(f"{result.scored} images scored{earlier}, {result.anomalous} anomalous.")
        typer.echo(f"report: {output / 'report.html'}")
    if result.interrupted:
        typer.echo("stopped; run the same command again to go on.", err=True)
        raise typer.Exit(INTERRUPTED)
    if result.scored == 0:
        raise typer.Exit(1)
    if result.failures:
        raise typer.Exit(SOME_UNREADABLE)


@app.command("evaluate")
def evaluate_command(
    data: Annotated[Path, typer.Argument(help="A category, a root of several, or pairs.")],
    shots: Annotated[str, typer.Option(help='Normal images to adapt to, or "full".')] = "4",
    seeds: Annotated[str, typer.Option(help="Comma-separated support seeds.")] = "0,1,2",
    preset: Preset = PresetName.feature,
    resolution: Resolution = None,
    aligned: Annotated[
        bool | None, typer.Option(help="Compare by place; unless given, for template pairs only.")
    ] = None,
    layout: Annotated[str, typer.Option(help="Folder layout; found out if auto.")] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Test images per category, for a quick look.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure a preset on a labelled set: image and pixel metrics over several supports."""
    with clear_errors():
        number = parse_shots(shots)
        seed_list = parse_seeds(seeds)
        from metaformer.benchmark import evaluate, save_results
        from metaformer.datasets import load_categories
        from metaformer.detector_method import DetectorMethod
        from metaformer.tables import print_results

        categories = load_categories(data, layout=layout)
        if aligned is None:
            all_paired = all(category.is_paired for category in categories)
            aligned = all_paired and preset is PresetName.feature
        method = DetectorMethod(preset.value, resolution=resolution, aligned=aligned)
        results = evaluate(
            categories[0] if len(categories) == 1 else categories,
            method,
            shots=number,
            seeds=seed_list,
            test_limit=limit,
            quiet=quiet,
        )
        if output is not None:
            save_results(results, output)
        if as_json:
            typer.echo(json.dumps(results, indent=2))
        elif not quiet:
            print_results(results)


def parse_shots(text: str) -> Any:
    """ "full" or a number from 1 up."""
    if text == "full":
        return "full"
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f'--shots takes a number from 1 up or "full", got {text!r}.')
    return int(text)


def parse_seeds(text: str) -> list[int]:
    """Comma-separated numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds takes numbers like 0,1,2, got {text!r}.") from None


@app.command()
def info(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
) -> None:
    """How a detector was made and what its threshold promises, as JSON."""
    with clear_errors():
        from metaformer.detector import Detector

        typer.echo(json.dumps(Detector.load(detector_file).info(), indent=2))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "demo-report"
    ),
    quiet: Quiet = False,
) -> None:
    """Adapt to bundled photos of good products, find the defects in others, write a report."""
    with clear_errors():
        from metaformer.demo import run_demo

        with progress_bar("demo", quiet) as on_step:
            report = run_demo(output, on_step)
        typer.echo(f"report: {report}")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="Which set; `metaformer data list` names them.")],
    destination: Annotated[Path, typer.Option("--output", "-o", help="Folder to put it in.")],
) -> None:
    """Download a public data set, checked, where its licence and address allow it."""
    with clear_errors():
        from metaformer.fetch import fetch

        typer.echo(f"{name}: in {fetch(name, destination)}")


@data_app.command("list")
def data_list() -> None:
    """The public data sets whose layout is known."""
    from metaformer.fetch import PUBLIC_SETS

    for name, public in sorted(PUBLIC_SETS.items()):
        how = "fetched" if public.url else "by hand"
        typer.echo(f"{name:<16} {how:<8} {public.licence:<20} {public.homepage}")


@pretrain_app.command("prior")
def pretrain_prior(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train the instance-prior generator P from unlabelled photos."""
    with clear_errors():
        from metaformer.training.prior import PriorTrainingConfig, train_prior

        typer.echo(train_prior(PriorTrainingConfig.from_yaml(config), resume=resume, quiet=quiet))


@pretrain_app.command("autoencoder")
def pretrain_autoencoder_command(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train A to reconstruct unlabelled photos, the start of the pixel preset."""
    with clear_errors():
        from metaformer.training.pretrain import PretrainConfig, pretrain_autoencoder

        typer.echo(pretrain_autoencoder(PretrainConfig.from_yaml(config), resume=resume))


@pretrain_app.command("universal")
def pretrain_universal(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train A (MAML) on tasks made from unlabelled photos."""
    with clear_errors():
        from metaformer.training.meta import MetaConfig, meta_train

        typer.echo(meta_train(MetaConfig.from_yaml(config), resume=resume, quiet=quiet))


def main() -> None:
    """Entry point; a broken pipe (``metaformer info x | head``) is not an error."""
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
