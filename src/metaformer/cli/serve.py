"""The service: ``serve``."""

from __future__ import annotations

import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metaformer.cli.shared.arguments import check_detector_argument
from metaformer.cli.shared.options import Quiet, clear_errors
from metaformer.cli.shared.screen import Ending, command_line, warn


class ServeEngineOption(StrEnum):
    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"


def serve(
    detectors: Annotated[
        list[Path] | None, typer.Argument(help="Detectors made by `adapt`, to take into the store.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="The store: where detectors are kept. Made if it is not there.")
    ] = Path("metaformer-store"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any that is free.", min=0, max=65535)] = (
        8000
    ),
    server_name: Annotated[
        list[str] | None,
        typer.Option(help="Name that clients know a server on loopback by: behind a proxy."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="METAFORMER_TOKEN",
            help="Ask clients for this bearer token. Better given in the environment: other users "
            "of the machine can see command lines.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Images scored at once; one a processor, at most 4, if unset.", min=1),
    ] = None,
    engine: Annotated[
        ServeEngineOption,
        typer.Option(help="What computes; auto: onnxruntime, or torch if that differs."),
    ] = ServeEngineOption.auto,
    max_body: Annotated[int, typer.Option(help="Largest request body, in megabytes.", min=1)] = 256,
    max_megapixels: Annotated[
        float, typer.Option(help="Largest image, in millions of pixels.", min=0.001, max=100)
    ] = 25,
    max_images: Annotated[int, typer.Option(help="Most images in a request.", min=1)] = 64,
    max_resolution: Annotated[
        int, typer.Option(help="Highest working resolution of new detectors.", min=64, max=2048)
    ] = 1024,
    max_requests: Annotated[
        int, typer.Option(help="Most uploads at work at once; more are told 429.", min=1)
    ] = 64,
    max_seconds: Annotated[
        float, typer.Option(help="Longest time to an answer; then 503.", min=0.1)
    ] = 60,
    max_upload_seconds: Annotated[
        float, typer.Option(help="Longest time a body may take to arrive; then 408.", min=0.1)
    ] = 120,
    max_detectors: Annotated[int, typer.Option(help="Most detectors in the store.", min=1)] = 1000,
    max_loaded: Annotated[int, typer.Option(help="Most detectors in memory.", min=1)] = 8,
    quiet: Quiet = False,
) -> None:
    """Serve detectors over HTTP, with a web page. Stops in good order on Ctrl-C or SIGTERM."""
    ending = Ending()
    with clear_errors():
        for path in detectors or ():
            check_detector_argument("serve", path, [])
        try:
            from metaformer.serve.server import serve as run
        except ImportError as error:
            raise ValueError(
                f"the service needs more packages ({error}). Install them with "
                f"`pip install 'metaformer-ad[serve]'`."
            ) from error
        from metaformer.serve.http.limits import Limits
        from metaformer.serve.http.security import is_loopback

        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise ValueError("the token must be visible ASCII text, because a header carries it.")
        if not is_loopback(host) and token is None:
            warn(
                f"anybody who can reach {host} can use this server. Set a token, in "
                f"METAFORMER_TOKEN or with --token."
            )
        limits = replace(
            Limits(),
            body_bytes=max_body * 2**20,
            pixels=round(max_megapixels * 1e6),
            images=max_images,
            resolution=max_resolution,
            requests=max_requests,
            seconds=max_seconds,
            upload_seconds=max_upload_seconds,
            detectors=max_detectors,
            loaded=max_loaded,
        )

        def on_ready(address: str) -> None:
            if not quiet:
                typer.echo(f"serving {folder} on {address} (Ctrl-C stops)", err=True)
                typer.echo(f"Next: open {address} in a browser; the API: {address}/docs", err=True)

        run(
            folder,
            detectors=tuple(detectors or ()),
            host=host,
            port=port,
            names=frozenset(name.lower() for name in server_name or ()),
            token=token,
            limits=limits,
            workers=workers or min(4, os.cpu_count() or 1),
            engine=engine.value,
            log_requests=not quiet,
            on_ready=on_ready,
        )
        if not quiet:
            ending.say(f"the detectors stay in {folder}; {command_line('serve')} goes on", err=True)
