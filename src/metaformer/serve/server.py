"""Runs the service: the socket, the threads, the end on SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import uvicorn
from uvicorn.config import LOGGING_CONFIG

from metaformer.detection.support.support_set import DuplicateSupportWarning, OddSupportWarning
from metaformer.serve.app import create_app
from metaformer.serve.http.limits import Limits
from metaformer.serve.http.security import LOOPBACK, is_loopback
from metaformer.serve.store import ServeEngine

CONNECTIONS = 500
"""Most connections at once; more are told 503 by the web server itself."""
GRACE_SECONDS = 20
"""What requests at work have to finish when the server is stopped."""


def serve(
    folder: Path,
    *,
    detectors: tuple[Path, ...],
    host: str,
    port: int,
    names: frozenset[str],
    token: str | None,
    limits: Limits,
    workers: int,
    engine: ServeEngine,
    log_requests: bool,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what is at work and return.

    Args:
        port: 0 for any that is free.
        names: further host names that a server on loopback accepts, in lower case.
        on_ready: called with the address, once it can be connected to.

    Raises:
        OSError: the address cannot be bound, or the folder not be written to.
        StoreError: another server uses the folder.
        DetectorFileError: one of ``detectors`` is no detector.
        MissingExtraError: the engine is not installed.
    """
    listener = listen(host, port)
    # Each worker thread scores an image of its own: the processors are shared between them.
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    # What a job has to say is in its `warnings`.
    for kind in (DuplicateSupportWarning, OddSupportWarning):
        warnings.simplefilter("ignore", kind)
    allowed = frozenset({*LOOPBACK, host.lower(), *names}) if is_loopback(host) else None
    app = create_app(
        folder,
        detectors=detectors,
        limits=limits,
        token=token,
        workers=workers,
        allowed_hosts=allowed,
        engine=engine,
    )
    for line in app.state.service.store.unreadable:
        warnings.warn(line, stacklevel=2)
    config = uvicorn.Config(
        app,
        log_level="info" if log_requests else "warning",
        access_log=log_requests,
        log_config=log_to_stderr(),
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        ws="none",
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # Before uvicorn listens to signals, and after: it raises them again when it has ended in good
    # order, but to be told to stop is how a server ends well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    on_ready(address(listener))
    server.run(sockets=[listener])
    if app.state.service.is_at_work():
        # A thread deep inside PyTorch cannot be stopped, and must not be there when the
        # interpreter takes itself apart. The store is closed, so nothing is lost but the job.
        sys.stderr.flush()
        os._exit(0)


def log_to_stderr() -> dict[str, Any]:
    """uvicorn's logging, with the log of requests on standard error like everything else."""
    config = deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config


def listen(host: str, port: int) -> socket.socket:
    """Raises: OSError: the address is in use, not of this machine, or not allowed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"{host}:{port} cannot be listened on ({error}). Choose another --port or --host."
        ) from error


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
