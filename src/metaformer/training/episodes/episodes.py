"""Meta-tasks from unlabelled photos: a few good specimens, and queries with synthetic defects.

Episode ``index`` of a seed is a pure function of both, so that training resumes exactly and any
number of workers gives the same episodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Generator as Stream
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.data.synthetic.defects import DefectConfig, draw_defect
from metaformer.training.episodes.camera import Rig, develop, draw_rig, draw_shot
from metaformer.training.episodes.object_sampler import part
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.product_samplers import (
    Image,
    Product,
    goods,
    scene,
    surface,
    tiles,
    views,
)

TaskKind = Literal[
    "surface",
    "goods",
    "views",
    "scene",
    "part",
    "tiles",
    "novel_region",
    "novel_image",
    "arrangement",
]
"""The novel ones come from ``real_anomalies``, where nothing synthetic is drawn; arrangements from
``change_episodes``."""

Maker = Callable[[PhotoPool, Generator, int], Product]
MAKERS: dict[TaskKind, Maker] = {
    "surface": surface,
    "goods": goods,
    "views": views,
    "scene": scene,
    "part": part,
    "tiles": tiles,
}

MOVES = ("cut_paste", "warp", "stripe")
"""Defects that rearrange what is there: on a random surface they leave nothing to be found."""


@dataclass(frozen=True)
class EpisodeConfig:
    """Composition of episodes. Shares and ranges are ours."""

    resolution: int = 128
    """Side of the square images, in pixels."""
    shots: tuple[int, ...] = (1, 2, 4, 8)
    """Sizes of the support, drawn with equal chance."""
    queries: tuple[int, int] = (4, 8)
    """Number of queries, least and most."""
    clean_share: float = 0.3
    """Chance of a query to have no defect; one query at least has one."""
    grey_share: float = 0.2
    """Share of episodes without colour, as from a grey camera."""
    swap_share: float = 0.3
    """Share of coloured episodes with the colour channels in another order."""
    weights: tuple[tuple[TaskKind, float], ...] = (
        ("surface", 0.33),
        ("goods", 0.08),
        ("views", 0.14),
        ("scene", 0.15),
        ("part", 0.2),
        ("tiles", 0.1),
    )
    """How often each kind of task is drawn, in proportion. Goods are rare: they vary so much that
    nearest-patch distance on pretrained features is at chance on them."""
    defects: DefectConfig = field(default_factory=DefectConfig)

    def __post_init__(self) -> None:
        if not 32 <= self.resolution <= 1024:
            raise ValueError(f"resolution: found {self.resolution}; accepted are 32 to 1024.")
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f"shots: found {self.shots}; accepted are one or more numbers >= 1.")
        if not 1 <= self.queries[0] <= self.queries[1]:
            raise ValueError(f"queries: found {self.queries}; accepted are (least >= 1, most).")
        for name in ("clean_share", "grey_share", "swap_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}; accepted are 0 to 1.")
        unknown = [kind for kind, _ in self.weights if kind not in MAKERS]
        if unknown or not any(weight > 0 for _, weight in self.weights):
            raise ValueError(
                f"weights: found {self.weights}; accepted are kinds of {list(MAKERS)}, one of them "
                "at least with a weight above 0."
            )


@dataclass(frozen=True)
class Episode:
    """One meta-task; images are uint8 RGB (S, S, 3)."""

    support: NDArray[np.uint8]
    """(k, S, S, 3), all good."""
    query: NDArray[np.uint8]
    """(q, S, S, 3)."""
    clean_query: NDArray[np.uint8]
    """(q, S, S, 3): each query as it would be without its defect, in the same light and noise."""
    masks: NDArray[np.bool_]
    """(q, S, S), True on defects."""
    is_clean: NDArray[np.bool_]
    """(q,)."""
    product: str
    """The photo the product was made from, for example ``texture/Wood/017``."""
    kind: TaskKind


def episode(pool: PhotoPool, config: EpisodeConfig, seed: int, index: int) -> Episode:
    """Episode ``index`` of ``seed``: the same at any time, on any number of workers.

    Raises:
        ValueError: ``seed`` or ``index`` is negative, or the pool allows none of the kinds of
            ``config.weights``.
    """
    rng = np.random.default_rng((seed, index))
    kind = _draw_kind(pool, config, rng)
    size = config.resolution
    shots = config.shots[rng.integers(len(config.shots))]
    count = int(rng.integers(config.queries[0], config.queries[1] + 1))
    product = MAKERS[kind](pool, rng, size)
    film = draw_film(rng, config, size)
    donors = [film.load(pool.image(int(i))) for i in rng.integers(len(pool), size=2)]
    defects = config.defects
    if not product.regular:
        findable = tuple(name for name in defects.kinds if name not in MOVES)
        defects = replace(defects, kinds=findable or defects.kinds)

    support = [
        film.expose(film.load(product.draw(rng, number, False)[0]), rng)[0]
        for number in range(shots)
    ]
    is_clean = rng.random(count) < config.clean_share
    is_clean[rng.integers(count)] &= not is_clean.all()
    query, clean_query, masks = [], [], []
    for number, clean in enumerate(is_clean, start=shots):
        specimen, foreground = product.draw(rng, number, True)
        good = film.load(specimen)
        bad, mask = good, np.zeros(good.shape[:2], bool)
        if not clean:
            donor = donors[number % 2]
            bad, mask = draw_defect(good, rng, donor=donor, foreground=foreground, config=defects)
        # One shot for both: light and noise must say nothing about the defect.
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
        product=product.name,
        kind=kind,
    )


@dataclass(frozen=True)
class Film:
    """The camera of an episode: its rig, and how it renders colour."""

    rig: Rig
    grey: bool
    channels: tuple[int, int, int]
    """Which channel of the photo becomes red, green and blue."""

    def load(self, image: Image) -> Image:
        """The image in the film's colours."""
        if self.grey:
            light = image @ np.array([0.299, 0.587, 0.114], np.float32)
            return np.repeat((light + 0.5).astype(np.uint8)[..., None], 3, axis=2)
        if self.channels == (0, 1, 2):
            return image
        return np.ascontiguousarray(image[..., self.channels])

    def expose(
        self, image: Image, rng: Generator, other: Image | None = None
    ) -> tuple[Image, Image]:
        """``image`` and ``other`` (or the image again) seen in one shot."""
        shot = draw_shot(rng, self.rig, grey=self.grey)
        seen = develop(image, shot, grey=self.grey)
        if other is None or other is image:
            return seen, seen
        return seen, develop(other, shot, grey=self.grey)


def draw_film(rng: Generator, config: EpisodeConfig, size: int) -> Film:
    grey = bool(rng.random() < config.grey_share)
    swap = bool(rng.random() < config.swap_share)
    order = rng.permutation(3).tolist()
    channels = (order[0], order[1], order[2]) if swap and not grey else (0, 1, 2)
    return Film(rig=draw_rig(rng, size), grey=grey, channels=channels)


Make = Callable[[PhotoPool, EpisodeConfig, int, int], Episode]
"""``episode``, or another function of the same arguments."""


def prefetch(
    pool: PhotoPool,
    config: EpisodeConfig,
    seed: int,
    *,
    start: int = 0,
    stop: int | None = None,
    step: int = 1,
    workers: int = 1,
    ahead: int = 8,
    make: Make = episode,
) -> Stream[Episode, None, None]:
    """Episodes ``start``, ``start + step``... in order, made by threads ahead of their use.

    OpenCV lets go of Python's lock while it works, so threads are enough. Give each of n processes
    ``start=rank, step=n``. Call ``cv2.setNumThreads(1)`` once: images this small gain nothing from
    OpenCV's own threads.

    Args:
        stop: first index not made; endless by default.
        workers: number of threads.
        ahead: episodes kept ready or in the making.
        make: what makes one of pool, config, seed and index.

    Raises:
        ValueError: ``workers``, ``ahead`` or ``step`` is below 1; else as ``episode``.
    """
    if min(workers, ahead, step) < 1:
        raise ValueError(
            f"workers, ahead, step: found {workers}, {ahead}, {step}; accepted are numbers >= 1."
        )
    return _prefetched(pool, config, seed, start, stop, step, workers, ahead, make)


def _prefetched(
    pool: PhotoPool,
    config: EpisodeConfig,
    seed: int,
    start: int,
    stop: int | None,
    step: int,
    workers: int,
    ahead: int,
    make: Make,
) -> Stream[Episode, None, None]:
    executor = ThreadPoolExecutor(workers, thread_name_prefix="episodes")
    waiting: deque[Future[Episode]] = deque()
    index = start
    try:
        while True:
            while len(waiting) < ahead and (stop is None or index < stop):
                waiting.append(executor.submit(make, pool, config, seed, index))
                index += step
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _draw_kind(pool: PhotoPool, config: EpisodeConfig, rng: Generator) -> TaskKind:
    """A kind of task the pool has photos for."""
    possible = [
        (kind, weight)
        for kind, weight in config.weights
        if weight > 0 and (kind != "goods" or pool.similar_goods)
    ]
    if not possible:
        raise ValueError(
            "weights: only 'goods' is asked for, and the pool has no photos of goods that look "
            "alike. Give other kinds a weight, or load photos of goods."
        )
    shares = np.array([weight for _, weight in possible])
    return possible[int(rng.choice(len(possible), p=shares / shares.sum()))][0]
