"""Reading what a detector file holds of the ``feature`` preset, of any version."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from metaformer.detection.feature.adapted import METRIC, TRANSFORMER, AdaptedFeature, Rows
from metaformer.detection.feature.config import SHIPPED, FeatureConfig
from metaformer.detection.feature.position_gaussian import GRID, Places
from metaformer.detection.feature.position_memory import SamePlace
from metaformer.detection.feature.preset import FeatureModel
from metaformer.networks.patch_metric import FINE, POOLED, Shares, metric_from_tensors
from metaformer.networks.patch_transformer import SeenImage, transformer_from_tensors


def adapted_from_state(
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    *,
    backbone_weights: Path | None = None,
) -> AdaptedFeature:
    """What ``AdaptedFeature.state`` gave, made into the same again: equal scores to the last bit.

    Raises:
        ValueError, KeyError, TypeError: something is missing or does not fit.
        BackboneError: the weights of another backbone cannot be used.
    """
    stored: dict[str, Any] = {  # JSON has no tuples
        k: tuple(v) if isinstance(v, list) else v for k, v in settings["config"].items()
    }
    stored["maps"] = maps_of(stored)
    # What earlier versions did not know.
    unknown: dict[str, Any] = {
        "learned": False,
        "places": 0,
        "compared_tokens": sys.maxsize,
        "means": False,
        "averaged_tokens": 4 * stored.get("compared_tokens", 0),
        "own": 0.0,
    }
    config = FeatureConfig(**(unknown | stored))
    if config.backbone != SHIPPED and not isinstance(config.backbone_sha256, str):
        raise ValueError(f"no SHA-256 of the weights of {config.backbone}")
    metric, transformer = None, None
    if config.learned:
        metric = metric_from_tensors(under(METRIC, tensors))
    if config.corrects:
        transformer = transformer_from_tensors(under(TRANSFORMER, tensors))
    model = FeatureModel.from_pretrained(
        config, backbone_weights=backbone_weights, metric=metric, transformer=transformer
    )
    kept = [
        name for name in config.readings if name in config.searched or f"memory.{name}" in tensors
    ]
    memory = {name: tensors[f"memory.{name}"] for name in kept}
    for name, tokens in memory.items():
        channels, dims = model.channels(name), 4 if config.aligned else 2
        if tokens.ndim != dims or tokens.shape[1] != channels or not tokens.numel():
            raise ValueError(
                f"memory.{name} has shape {tuple(tokens.shape)}, needed are {dims} dimensions "
                f"of which the second is {channels}"
            )
    grids = None  # of a file written before they were kept, or of a memory cut to its cap
    if all(f"grids.{name}" in tensors for name in config.readings):
        grids = {name: tensors[f"grids.{name}"] for name in config.readings}
        for name, sizes in grids.items():
            cells = memory[name].numel() // memory[name].shape[1]
            fits = sizes.ndim == 2 and sizes.shape[1] == 2 and bool((sizes > 0).all())
            if not fits or int(sizes.prod(1).sum()) != cells:
                raise ValueError(f"grids.{name} does not add up to the {cells} tokens kept")
    views, places = views_of(tensors, model), places_of(tensors, model)
    count = settings.get("images", 1)  # before they were written no map depended on these two
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"images is {count!r}, needed is a number of 1 or more")
    said = said_of_places(settings)
    adapted = AdaptedFeature(
        model, memory, grids, views, places, count=count, products=len(said["alignments"])
    )
    if config.has_same_place:
        support = adapted.support()
        in_place = same_place_of(tensors, model) if support is None else SamePlace.of(support)
        if len(said["products"]) not in (0, len(in_place.fine)):
            raise ValueError(
                f"products are of {len(said['products'])} images, needed are {len(in_place.fine)}"
            )
        adapted.same_place = replace(in_place, **said)
    if transformer is not None:
        adapted.seen = seen_of(tensors, transformer.config.width)
    return adapted


def maps_of(stored: dict[str, Any]) -> tuple[Shares, ...]:
    """How distances make the maps, and out of ``stored`` with what earlier versions wrote: the
    exponents of pooled tokens, the shares of stride 32, or neither.

    Raises:
        TypeError, ValueError: these are no shares.
    """
    balances = stored.pop("balances", ()) or (None,)
    contexts = stored.pop("contexts", ()) or (0.0,) * len(balances)
    if "maps" in stored:
        return tuple(Shares(**shares) for shares in stored["maps"])
    return tuple(
        Shares(pooled=balance, context=context)
        for balance, context in zip(balances, contexts, strict=True)
    )


def under(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``start``, without it."""
    return {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}


def seen_of(tensors: dict[str, Tensor], width: int) -> dict[int, SeenImage]:
    """The support images in a detector file as T sees them.

    Raises:
        ValueError: they do not add up.
        KeyError: there are none.
    """
    tokens, rows = tensors["seen.tokens"], tensors["seen.rows"].tolist()
    loudness, index = tensors["seen.loudness"].tolist(), tensors["seen.index"].tolist()
    lengths = {len(rows), len(loudness), len(index), len(set(index))}
    fits = tokens.ndim == 2 and tokens.shape[1] == width and sum(rows) == len(tokens)
    if not rows or min(rows) < 1 or len(lengths) != 1 or not fits:
        raise ValueError(
            f"seen.tokens has shape {tuple(tokens.shape)}, needed are {sum(rows)} rows of {width} "
            f"for {len(rows)} images"
        )
    return {
        i: SeenImage(part, loud)
        for i, part, loud in zip(index, tokens.split(rows), loudness, strict=True)
    }


def places_of(tensors: dict[str, Tensor], model: FeatureModel) -> Places | None:
    """What a detector file says of places; None if nothing.

    Raises:
        ValueError: shapes or numbers do not fit.
        KeyError: a part is missing.
    """
    if "places.mean" not in tensors:
        return None
    mean, covariances = tensors["places.mean"], tensors["places.covariances"]
    count = int(tensors["places.count"])
    channels, cells = model.channels(POOLED), GRID[0] * GRID[1]
    shapes = {"mean": (cells, channels), "covariances": (cells, channels * (channels + 1) // 2)}
    if mean.shape != shapes["mean"] or covariances.shape != shapes["covariances"]:
        raise ValueError(
            f"places have shapes {tuple(mean.shape)} and {tuple(covariances.shape)}, needed are "
            f"{shapes['mean']} and {shapes['covariances']}"
        )
    if count < 1:
        raise ValueError(f"places of {count} images")
    places = Places(count, mean, covariances)
    places.whitening  # noqa: B018 - fails here, not at the first image, if it cannot be made
    return places


def same_place_of(tensors: dict[str, Tensor], model: FeatureModel) -> SamePlace:
    """What a detector file says some support images show at each place.

    Raises:
        ValueError: shapes do not fit.
        KeyError: a part is missing.
    """
    fine, raw = tensors["same_place.fine"], tensors["same_place.raw"]
    channels = model.channels(FINE)
    if fine.ndim != 4 or fine.shape != raw.shape or fine.shape[1] != channels or not fine.numel():
        raise ValueError(
            f"same_place has shapes {tuple(fine.shape)} and {tuple(raw.shape)}, needed are two "
            f"alike of 4 dimensions of which the second is {channels}"
        )
    return SamePlace(fine, raw)


def said_of_places(settings: dict[str, Any]) -> dict[str, Any]:
    """What a detector file says of products and of what places say, as ``SamePlace`` has it.

    Raises:
        ValueError: it does not add up.
    """
    alignment, products = settings.get("alignment", 0.0), settings.get("products", [])
    alignments = alignment if isinstance(alignment, list) else [alignment]
    are_shares = all(isinstance(value, float) and 0 <= value <= 1 for value in alignments)
    if not alignments or not are_shares:
        raise ValueError(f"alignment is {alignment!r}, needed are numbers from 0 to 1")
    known = set(range(len(alignments)))
    if set(products) != known and (products or len(alignments) > 1):
        raise ValueError(f"products is {products!r}, needed are numbers from 0 to {max(known)}")
    return {"products": tuple(products), "alignments": tuple(alignments)}


def views_of(tensors: dict[str, Tensor], model: FeatureModel) -> list[Rows]:
    """The views in a detector file, one for each image; none if it has none.

    Raises:
        ValueError: they do not add up.
    """
    by_reading = {}
    for name in model.config.searched:
        if f"views.{name}" not in tensors or f"view_rows.{name}" not in tensors:
            return []
        rows, counts = tensors[f"views.{name}"], tensors[f"view_rows.{name}"].tolist()
        if rows.ndim != 2 or rows.shape[1] != model.channels(name) or sum(counts) != len(rows):
            raise ValueError(
                f"views.{name} has shape {tuple(rows.shape)}, needed are {sum(counts)} rows of "
                f"{model.channels(name)}"
            )
        by_reading[name] = rows.split(counts)
    return [
        dict(zip(by_reading, rows, strict=True)) for rows in zip(*by_reading.values(), strict=True)
    ]
