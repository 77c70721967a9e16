"""Packages of optional extras: imported when needed, named when missing."""

from __future__ import annotations

import importlib
import os
from typing import Any


class MissingExtraError(ImportError, ValueError):
    """A package of an optional extra is not installed; the message names the extra."""


def need(package: str) -> Any:
    """Import an optional package of the ``export`` extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    # The packages of ONNX Runtime keep an identifier of the machine and send usage data, unless
    # this is set before they are imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs the package {package.split('.')[0]}, which is not installed ({error}). "
            f"Run: pip install 'metaformer-ad[export]'"
        ) from error
