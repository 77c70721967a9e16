"""Public data sets: ``data fetch`` and ``data list``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaformer.cli.shared import examples
from metaformer.cli.shared.options import Quiet, clear_errors
from metaformer.cli.shared.screen import Ending, command_line


def set_names(incomplete: str) -> list[str]:
    """For completion."""
    from metaformer.data.datasets.catalogue import PUBLIC_SETS

    return [name for name in sorted(PUBLIC_SETS) if name.startswith(incomplete)]


app = typer.Typer(help="Public data sets for benchmarking.", no_args_is_help=True)


@app.command("fetch", epilog=examples.FETCH)
def data_fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="Which set; `metaformer data list` names them.", autocompletion=set_names
        ),
    ],
    destination: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to put it in; made if need be.")
    ] = Path("data"),
    quiet: Quiet = False,
) -> None:
    """Download a public data set, checked, where its licence and address allow it."""
    ending = Ending()
    with clear_errors():
        from metaformer.data.datasets.download import fetch

        found = fetch(name, destination, quiet=quiet)
        typer.echo(f"{name}: in {found}")
        if not quiet:
            ending.say(command_line("evaluate", found))


@app.command("list", epilog=examples.LIST)
def data_list() -> None:
    """The public data sets whose layout is known."""
    ending = Ending()
    from metaformer.data.datasets.download import PUBLIC_SETS

    width = max(len(public.licence) for public in PUBLIC_SETS.values())
    for name, public in sorted(PUBLIC_SETS.items()):
        how = "fetched" if public.url else "by hand"
        typer.echo(f"{name:<16} {how:<8} {public.licence:<{width}}  {public.homepage}")
    typer.echo("\nfetched: `metaformer data fetch NAME` downloads, checks and unpacks it.")
    typer.echo("by hand: the same command says what to download, then checks and unpacks that.")
    ending.say(command_line("data", "fetch", "NAME"))
