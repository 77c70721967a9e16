"""Training what is shipped: ``pretrain prior``, ``autoencoder``, ``universal`` and
``transformer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaformer.cli import examples
from metaformer.cli.options import Quiet, clear_errors

app = typer.Typer(help="Train what is shipped with the package.", no_args_is_help=True)


@app.command("prior", epilog=examples.pretrain("prior", "prior.yaml"))
def pretrain_prior(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train the instance-prior generator P from unlabelled photos."""
    with clear_errors():
        from metaformer.training.prior.train import PriorTrainingConfig, train_prior

        typer.echo(train_prior(PriorTrainingConfig.from_yaml(config), resume=resume, quiet=quiet))


@app.command("autoencoder", epilog=examples.pretrain("autoencoder", "pretrain_autoencoder.yaml"))
def pretrain_autoencoder_command(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
) -> None:
    """Train A to reconstruct unlabelled photos, the start of the pixel preset."""
    with clear_errors():
        from metaformer.training.universal.pretrain_autoencoder import (
            PretrainConfig,
            pretrain_autoencoder,
        )

        typer.echo(pretrain_autoencoder(PretrainConfig.from_yaml(config), resume=resume))


@app.command("universal", epilog=examples.pretrain("universal", "universal_pixel.yaml"))
def pretrain_universal(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train A (MAML) and T on tasks made from unlabelled photos."""
    with clear_errors():
        from metaformer.training.universal.config import MetaConfig
        from metaformer.training.universal.train import meta_train

        typer.echo(meta_train(MetaConfig.from_yaml(config), resume=resume, quiet=quiet))


@app.command("transformer")
def pretrain_transformer(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train the transformer T, which corrects the anomaly map, on tasks made from photos."""
    with clear_errors():
        from metaformer.training.transformer.config import TransformerTrainingConfig
        from metaformer.training.transformer.train import train_transformer

        settings = TransformerTrainingConfig.from_yaml(config)
        typer.echo(train_transformer(settings, resume=resume, quiet=quiet))
