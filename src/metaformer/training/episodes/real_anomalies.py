"""Tasks whose anomalies are real photos, not synthetic defects.

A model that learned what synthetic defects look like does well on held-out episodes and badly on
real defects. These tasks hold nothing it could have learned that way: the anomaly is another real
material or other real goods, as a region with a soft edge or as a whole image. On photos held out
they choose settings without a look at any benchmark; on those of training they are a share of the
episodes, so that a model does not learn synthetic defects alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from metaformer.data.synthetic.defect_shapes import blob, cloud, rectangle
from metaformer.training.episodes.episodes import (
    Episode,
    EpisodeConfig,
    Film,
    TaskKind,
    draw_film,
    episode,
)
from metaformer.training.episodes.photo_pool import PhotoPool, appearance, family
from metaformer.training.episodes.product_samplers import Image, Product, goods, pick, surface

AREA = (0.01, 0.12)
"""Area of a novel region as a share of the image, log-uniform (ours)."""
UNLIKE: dict[TaskKind, tuple[float, float]] = {
    "novel_region": (3.0, float("inf")),
    "novel_image": (2.5, 6.0),
}
"""Least and largest ``appearance`` distance between the normal and the novel photo, chosen by eye:
the difference must exist, and must take more than a glance to find."""
_ATTEMPTS = 200


def real_anomaly_tasks(
    pool: PhotoPool, config: EpisodeConfig, seed: int, count: int
) -> Iterator[Episode]:
    """``count`` tasks, alternating between the kinds ``novel_region`` and ``novel_image``.

    Half of the queries are clean, the odd one too. In ``novel_image`` the mask of an anomalous
    query is True everywhere: such tasks count for image metrics, not for pixel metrics. Task i is
    a pure function of pool, config, ``seed`` and i.

    Args:
        config: its resolution, shots, numbers of queries and shares of colour are used.

    Raises:
        ValueError: the pool has no two photos that make a task.
    """
    for index in range(count):
        yield real_anomaly_task(pool, config, seed, index)


def mixed_task(
    pool: PhotoPool, config: EpisodeConfig, seed: int, index: int, *, novel_share: float
) -> Episode:
    """``episode`` or, with chance ``novel_share``, a real-anomaly task; a pure function of all.

    Raises:
        ValueError: as ``episode`` or ``real_anomaly_tasks``.
    """
    if np.random.default_rng((seed, index, 2)).random() < novel_share:
        return real_anomaly_task(pool, config, seed, index)
    return episode(pool, config, seed, index)


def real_anomaly_task(pool: PhotoPool, config: EpisodeConfig, seed: int, index: int) -> Episode:
    """Task ``index``: even ones show a region of another photo, odd ones another photo."""
    rng = np.random.default_rng((seed, index, 1))
    size = config.resolution
    shots = config.shots[rng.integers(len(config.shots))]
    count = int(rng.integers(config.queries[0], config.queries[1] + 1))
    kind: TaskKind = "novel_image" if index % 2 else "novel_region"
    film = draw_film(rng, config, size)
    anchor, other = _two_photos(pool, rng, film, kind)
    # The same state for both: scale, turn and variation must not tell the novel one apart.
    state = int(rng.integers(2**32))
    normal = _product(pool, state, size, anchor)
    novel = _product(pool, state, size, other)

    def draw(product: Product, number: int) -> Image:
        return film.load(product.draw(rng, number, True)[0])

    support = [film.expose(draw(normal, number), rng)[0] for number in range(shots)]
    is_clean = rng.permutation(count) < (count + 1) // 2
    query, clean_query, masks = [], [], []
    for number, clean in enumerate(is_clean, start=shots):
        good = draw(normal, number)
        bad, mask = good, np.zeros((size, size), bool)
        if not clean and kind == "novel_image":
            bad, mask = draw(novel, number), np.ones((size, size), bool)
        elif not clean:
            bad, mask = _with_region(rng, good, draw(novel, number))
        seen_good, seen_bad = film.expose(good, rng, bad)
        query.append(seen_bad)
        clean_query.append(seen_good)
        masks.append(mask)
    return Episode(
        support=np.stack(support),
        query=np.stack(query),
        clean_query=np.stack(clean_query),
        masks=np.stack(masks),
        is_clean=is_clean,
        product=normal.name,
        kind=kind,
    )


def _two_photos(pool: PhotoPool, rng: Generator, film: Film, kind: TaskKind) -> tuple[int, int]:
    """A photo of the normal product, and one of what is novel to it and looks so.

    For an image: another surface of the same kind (two woods), or goods of another kind of the
    same family (two apples). For a region: any other kind of the same domain.
    """
    material, similar_goods = pool.of_domain["material"], pool.similar_goods
    for _ in range(_ATTEMPTS):
        if not material and not similar_goods:
            break
        domain = (
            similar_goods if similar_goods and (not material or rng.random() < 0.4) else material
        )
        anchor, other = pick(rng, domain), pick(rng, domain)
        kind_of, kind_other = pool.photos[anchor].kind, pool.photos[other].kind
        if kind == "novel_image" and domain is material:
            other = pick(rng, pool.of_kind[kind_of])
        elif kind == "novel_image":
            relatives = tuple(
                i for i in similar_goods if _are_relatives(kind_of, pool.photos[i].kind)
            )
            if not relatives:
                continue
            other = pick(rng, relatives)
        elif kind_of == kind_other:
            continue
        least, largest = UNLIKE[kind]
        if least <= _distance(pool, film, anchor, other) <= largest:
            return anchor, other
    raise ValueError(
        f"pool: found no two photos for a task of kind {kind}; accepted is a pool with textures of "
        "two kinds, or groceries of two kinds of one family. Load more kinds."
    )


def _are_relatives(one: str, other: str) -> bool:
    """Whether two kinds belong to one family and are not the same goods under two names."""
    (root, _, first), (other_root, _, second) = one.partition("/"), other.partition("/")
    same_family = root == other_root and family(first) == family(second)
    return same_family and first.split("_")[-1] != second.split("_")[-1]


def _distance(pool: PhotoPool, film: Film, one: int, other: int) -> float:
    """Distance of the appearance descriptors of two photos, developed by ``film``."""
    centre = 0.5 if pool.photos[one].domain == "goods" else 1.0
    looks = [appearance(film.load(pool.image(i)), centre=centre) for i in (one, other)]
    return float(np.linalg.norm(looks[0] - looks[1]))


def _product(pool: PhotoPool, state: int, size: int, anchor: int) -> Product:
    rng = np.random.default_rng(state)
    make = surface if pool.photos[anchor].domain == "material" else goods
    return make(pool, rng, size, anchor)


def _with_region(rng: Generator, good: Image, novel: Image) -> tuple[Image, np.ndarray]:
    """``good`` with a soft-edged region of ``novel``; half the time its mean colour is matched."""
    size = good.shape[0]
    outline = (blob, rectangle, cloud)[rng.integers(3)]
    area = float(np.exp(rng.uniform(*np.log(AREA)))) * size * size
    centre = rng.uniform(0.1, 0.9, 2) * size
    shape = outline(rng, area, (centre[0], centre[1]), (size, size))
    old, new = good[shape.box].astype(np.float32), novel[shape.box].astype(np.float32)
    if rng.random() < 0.5 and new.std() > 8:  # a plain region would be matched away
        new += old.mean((0, 1)) - new.mean((0, 1))
    changed = good.copy()
    blended = old + shape.matte[..., None] * (new - old)
    changed[shape.box] = np.clip(blended + 0.5, 0, 255).astype(np.uint8)
    mask = np.zeros((size, size), bool)
    mask[shape.box] = shape.matte >= 0.5
    return changed, mask
