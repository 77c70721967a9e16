"""A command run in a terminal, and what a person would have read there."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable


def run_in_terminal(
    *arguments: object,
    stop_when: Callable[[str], bool] | None = None,
    seconds: float = 120,
    **environment: str,
) -> str:
    """All that ``metaformer`` writes to a terminal of 120 columns, control codes included.

    Args:
        stop_when: SIGTERM is sent when the output so far fulfils it.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "metaformer.cli", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", **environment},
    )
    os.close(theirs)
    content, began, is_stopped = b"", time.monotonic(), False
    try:
        while time.monotonic() - began < seconds:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                content += part
            text = content.decode(errors="replace")
            if stop_when is not None and not is_stopped and stop_when(text):
                process.terminate()
                is_stopped = True
        process.wait(60)
    finally:
        process.kill()
        os.close(ours)
    return content.decode(errors="replace")
