"""What schemathesis uploads as images: sound files of every kind that is read.

Loaded by schemathesis itself, which ``benchmarks.robustness.fuzz`` tells where it is.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies
from PIL import Image

from benchmarks.robustness.live_service import PHOTOS
from benchmarks.robustness.mutations import sound_files

REFUSED = "fax.tiff"
"""For what it is, however sound."""
SOUND = sound_files(Image.open(sorted((PHOTOS / "test").glob("*.jpg"))[0]))
FILES = [data for name, data in SOUND.items() if name != REFUSED]


@schemathesis.hook
def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
    """Leave out what the document cannot say, and what a form cannot.

    ``aligned`` needs the feature preset; and a null arrives as the word, which is a good name.
    """
    if not isinstance(body, dict):
        return True
    contradicts = body.get("aligned") is True and body.get("preset") == "pixel"
    return not contradicts and body.get("name", "") is not None


# Only what is an image is, in the words of the document, a `binary` that must be accepted.
schemathesis.openapi.format("binary", strategies.sampled_from(FILES))
