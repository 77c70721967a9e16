"""Training what is shipped: ``pretrain prior``, ``autoencoder``, ``universal`` and
``transformer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaformer.cli import examples
from metaformer.cli.options import Device, Quiet, clear_errors
from metaformer.cli.screen import Ending, command_line

app = typer.Typer(help="Train what is shipped with the package.", no_args_is_help=True)


@app.command("prior", epilog=examples.pretrain("prior", "prior.yaml"))
def pretrain_prior(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train the instance-prior generator from unlabelled photos."""
    ending = Ending()
    with clear_errors():
        from metaformer.training.prior.train import PriorTrainingConfig, train_prior

        settings = PriorTrainingConfig.from_yaml(config)
        typer.echo(train_prior(settings, resume=resume, quiet=quiet))
        if not quiet:
            ending.say(f"look at the sample sheets in {settings.output}")


@app.command("autoencoder", epilog=examples.pretrain("autoencoder", "pretrain_autoencoder.yaml"))
def pretrain_autoencoder_command(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Train the autoencoder to reconstruct unlabelled photos, the start of the pixel preset."""
    ending = Ending()
    with clear_errors():
        from metaformer.training.universal.pretrain_autoencoder import (
            PretrainConfig,
            pretrain_autoencoder,
        )

        weights = pretrain_autoencoder(
            PretrainConfig.from_yaml(config), resume=resume, quiet=quiet, device=device
        )
        typer.echo(weights)
        if not quiet:
            ending.say(f"meta-train from it: start: {weights} in configs/universal_pixel.yaml")


@app.command("universal", epilog=examples.pretrain("universal", "universal_pixel.yaml"))
def pretrain_universal(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train the autoencoder (MAML) and the transformer on tasks made from unlabelled
    photos."""
    ending = Ending()
    with clear_errors():
        from metaformer.training.universal.config import MetaConfig
        from metaformer.training.universal.train import meta_train

        weights = meta_train(MetaConfig.from_yaml(config), resume=resume, quiet=quiet)
        typer.echo(weights)
        if not quiet:
            options = ("--preset", "pixel", "--universal-weights", weights.parent)
            ending.say(command_line("evaluate", "DATA", *options))


@app.command("transformer", epilog=examples.pretrain("transformer", "gap_transformer.yaml"))
def pretrain_transformer(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train the transformer, which corrects the anomaly map, on tasks made from photos."""
    ending = Ending()
    with clear_errors():
        from metaformer.training.transformer.config import TransformerTrainingConfig
        from metaformer.training.transformer.train import train_transformer

        settings = TransformerTrainingConfig.from_yaml(config)
        typer.echo(train_transformer(settings, resume=resume, quiet=quiet))
        if not quiet:
            ending.say(f"the weights at several numbers of pairs are in {settings.output}")
