"""The report of a review: the same page as ``metaformer predict`` writes, from answers sent back.

The service keeps no photo, so the page sends the pictures it was given with the scores.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from metaformer.data.datasets.category import Sample
from metaformer.detection.detector import Detector
from metaformer.detection.scoring.prediction import Region
from metaformer.detection.support.support_thumbnails import GoodExample
from metaformer.inference.report.html import ReportBuilder
from metaformer.inference.report.settings import report_settings
from metaformer.inference.report.thumbnails import LISTED_REGIONS, Picture
from metaformer.io.encoding import data_address
from metaformer.serve.http.review_schemas import ReportRequest
from metaformer.serve.http.schemas import GoodShown, PictureFound, RegionFound


class PictureError(ValueError):
    """A picture sent back is not one that the service gave."""


def to_answer(picture: Picture) -> PictureFound:
    """A picture as the answer to a scored photo holds it."""
    good = picture.good
    return PictureFound(
        photo=data_address(picture.photo, "jpeg"),
        heat=data_address(picture.heat, "png"),
        thumbnail=picture.thumbnail,
        crops=[data_address(crop, "jpeg") for crop in picture.crops],
        good=None
        if good is None
        else GoodShown(name=good.name, photo=data_address(good.jpeg, "jpeg")),
    )


def to_picture(
    found: PictureFound,
    size: tuple[int, int],
    regions: list[RegionFound],
    outline: list[list[int]],
) -> Picture:
    """The picture of an answer sent back; ``size`` is (width, height) of the photo.

    Raises:
        PictureError: an address holds no picture of its kind.
    """
    good = found.good
    return Picture(
        photo=content_of(found.photo, "jpeg"),
        heat=content_of(found.heat, "png"),
        thumbnail=found.thumbnail,
        size=size,
        regions=tuple(to_region(region) for region in regions[:LISTED_REGIONS]),
        region_count=len(regions),
        outline=tuple(tuple(points) for points in outline),
        crops=tuple(content_of(crop, "jpeg") for crop in found.crops),
        good=None if good is None else GoodExample(good.name, content_of(good.photo, "jpeg")),
    )


def to_region(found: RegionFound) -> Region:
    x, y, width, height = found.box
    return Region(x, y, width, height, found.area, found.peak, x, y)


def content_of(address: str, kind: str) -> bytes:
    """Bytes in a data address. Raises: PictureError: it is of another kind."""
    start = f"data:image/{kind};base64,"
    try:
        if not address.startswith(start):
            raise ValueError
        return base64.b64decode(address[len(start) :], validate=True)
    except (ValueError, binascii.Error):
        raise PictureError(f"a picture must be an address that starts with {start}") from None


def make_report(detector: Detector, request: ReportRequest) -> str:
    """The page as text.

    Raises:
        PictureError: a picture is not one that the service gave.
    """
    settings = report_settings(detector)
    name = detector.provenance.get("name")
    if name:
        settings = {"title": f"Inspection report: {name}", **settings}
    builder = ReportBuilder(settings)
    for entry in request.entries:
        truth = None
        if entry.truth is not None:
            kind = entry.kind or ("defect" if entry.truth == "defective" else "good")
            truth = Sample(Path(entry.name), entry.truth == "defective", (), kind)
        if entry.picture is None:
            builder.add_scored(
                entry.name,
                score=entry.score,
                p_value=entry.p_value,
                is_anomalous=entry.is_anomalous,
                truth=truth,
            )
        else:
            builder.add_picture(
                entry.name,
                to_picture(
                    entry.picture, (entry.width, entry.height), entry.regions, entry.outline
                ),
                score=entry.score,
                p_value=entry.p_value,
                is_anomalous=entry.is_anomalous,
                truth=truth,
            )
    for failure in request.failures:
        builder.add_failure(failure.name, failure.reason)
    return builder.page()
