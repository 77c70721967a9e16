"""Forked workers: one thread each in the libraries that compute.

A child of ``fork`` has the thread that forked and no other. PyTorch and OpenCV believe that their
pools of threads are still there and wait for them for ever. Told to use one thread, they ask
nobody; that has to be before the fork, since the call itself waits for the pools.
"""

from __future__ import annotations

import os
import sys
import threading

_threads = threading.local()
"""What the thread that forks had set."""


def _use_one_thread() -> None:
    """For PyTorch and OpenCV, as far as they have been imported."""
    torch, cv2 = sys.modules.get("torch"), sys.modules.get("cv2")
    # Modules may be half imported by another thread.
    if torch is not None and hasattr(torch, "set_num_threads"):
        _threads.of_torch = torch.get_num_threads()
        torch.set_num_threads(1)
    if cv2 is not None and hasattr(cv2, "setNumThreads"):
        _threads.of_cv2 = cv2.getNumThreads()
        cv2.setNumThreads(1)


def _use_as_many_as_before() -> None:
    of_torch, of_cv2 = vars(_threads).pop("of_torch", None), vars(_threads).pop("of_cv2", None)
    if of_torch is not None:
        sys.modules["torch"].set_num_threads(of_torch)
    if of_cv2 is not None:
        sys.modules["cv2"].setNumThreads(of_cv2)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_use_one_thread, after_in_parent=_use_as_many_as_before)
