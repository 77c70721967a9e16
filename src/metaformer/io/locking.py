"""One writer at a time for a folder or file of results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def one_writer(lock_file: Path, refusal: Exception) -> Iterator[None]:
    """Hold the lock of ``lock_file``; the system frees it however the program ends.

    Where the file system has no locks, as some network drives, nobody is kept out.

    Raises:
        refusal: another process, or another part of this one, holds it.
        OSError: the file cannot be made.
    """
    lock = FileLock(lock_file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise refusal from None
    except NotImplementedError:  # no locks there
        yield
        return
    try:
        yield
    finally:
        if os.name != "nt":  # removed while held: filelock tells who has opened it that it is gone
            lock_file.unlink(missing_ok=True)
        lock.release()
