"""Episodes of the transformer: views that move by themselves, and anomalies that are changes.

Half of the anomalies change objects (taken away, put in, of another kind, without a part), half are
defects of texture and structure; a share are whole images of something else, blank frames and half
lost ones. Areas are log-uniform, as in MetaUAS (Gao 2024) views of support and query are turned and
scaled independently. Episode ``index`` of a seed is a pure function of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.data.synthetic.defects import DefectConfig, draw_defect
from metaformer.training.episodes.arrangements import FAULTS, Arrangement, arrangement
from metaformer.training.episodes.episodes import (
    MAKERS,
    MOVES,
    Episode,
    EpisodeConfig,
    Film,
    TaskKind,
    draw_film,
)
from metaformer.training.episodes.frame_changes import blank_frame, half_lost, object_change
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.pose import Mask, Pose, move, move_mask
from metaformer.training.episodes.product_samplers import Image, Product

LEAST_VISIBLE = 2.0
"""Grey levels that an anomaly changes on average, or it is none."""


@dataclass(frozen=True)
class ChangeConfig:
    """All shares and ranges are ours but for the turn and the scale (MetaUAS)."""

    sides: tuple[int, ...] = (192, 192, 192, 256)
    """Sides of the images of an episode, in pixels, drawn with equal chance."""
    shots: tuple[int, ...] = (1, 2, 4, 8)
    queries: int = 8
    clean_share: float = 0.35
    area: tuple[float, float] = (0.0003, 0.3)
    """Of an anomaly, as a share of the image; log-uniform."""
    turn: float = 30.0
    """Largest turn of a view, degrees either way; an episode's own largest is uniform below it."""
    scale: tuple[float, float] = (0.95, 1.05)
    blank_share: float = 0.04
    half_lost_share: float = 0.03
    novel_share: float = 0.06
    """Shares of the anomalies that are blank, half lost, whole images of something else."""
    object_share: float = 0.5
    """Of the other anomalies, changes of objects; the rest are defects."""
    weights: tuple[tuple[TaskKind, float], ...] = (
        ("arrangement", 0.22),
        ("surface", 0.22),
        ("views", 0.12),
        ("scene", 0.13),
        ("part", 0.17),
        ("tiles", 0.08),
        ("goods", 0.06),
    )


def is_visible(good: Image, bad: Image, mask: Mask) -> bool:
    """Whether the anomaly shows: False if it is out of view or overexposed."""
    difference = np.abs(bad[mask].astype(np.int16) - good[mask])
    return bool(mask.any() and difference.mean() >= LEAST_VISIBLE)


@dataclass(frozen=True)
class Scene:
    """A product before its camera, and what may be wrong with it."""

    config: ChangeConfig
    film: Film
    product: Product | Arrangement
    other: Product | Arrangement
    """Another product, of which whole images are anomalies."""
    pose: Pose
    defects: DefectConfig
    donors: list[Image]
    """Photos that foreign material is taken from."""
    size: int

    def photograph(
        self, rng: Generator, pose: NDArray[np.float64], good: Image, bad: Image | None = None
    ) -> tuple[Image, Image]:
        """Both as the camera sees them, in the same light; twice the first if there is no other."""
        views = [self.film.load(move(x, pose)) for x in (good, bad) if x is not None]
        return self.film.expose(views[0], rng, *views[1:])

    def clean(self, rng: Generator, number: int) -> Image:
        pose = self.pose.draw(rng, self.size)
        return self.photograph(rng, pose, draw(self.product, rng, number)[0])[0]

    def query(self, rng: Generator, number: int) -> tuple[Image, Image, Mask]:
        """A query without and with its anomaly as the camera sees both, and the mask."""
        config, pose = self.config, self.pose.draw(rng, self.size)
        donor = self.donors[int(rng.integers(len(self.donors)))]
        good, foreground = draw(self.product, rng, number)
        everything = np.ones((self.size, self.size), bool)
        choice = rng.random()
        if choice < config.blank_share:
            seen, _ = self.photograph(rng, pose, good)
            return seen, blank_frame(rng, seen), everything
        choice -= config.blank_share
        if choice < config.half_lost_share:
            seen, _ = self.photograph(rng, pose, good)
            return seen, *half_lost(rng, seen)
        choice -= config.half_lost_share
        if choice < config.novel_share:
            bad, mask = draw(self.other, rng, number)[0], everything
        else:
            good, bad, mask = self.defective(rng, number, good, foreground, donor)
        return *self.photograph(rng, pose, good, bad), move_mask(mask, pose)

    def defective(
        self, rng: Generator, number: int, good: Image, foreground: Mask | None, donor: Image
    ) -> tuple[Image, Image, Mask]:
        """A specimen without and with a changed object or a defect, and the mask of that."""
        found = None
        if rng.random() < self.config.object_share:
            if isinstance(self.product, Arrangement):
                fault = FAULTS[int(rng.integers(len(FAULTS)))]
                return self.product.change(rng, number, fault)
            found = object_change(rng, good, donor, foreground, self.config.area)
        bad, mask = found or draw_defect(
            good, rng, donor=donor, foreground=foreground, config=self.defects
        )
        return good, bad, mask


def draw(product: Product | Arrangement, rng: Generator, number: int) -> tuple[Image, Mask | None]:
    """A good specimen, and where its object is if that is known."""
    if isinstance(product, Arrangement):
        return product.draw(rng, number), None
    return product.draw(rng, number, True)


def draw_scene(pool: PhotoPool, config: ChangeConfig, rng: Generator) -> tuple[Scene, TaskKind]:
    size = int(config.sides[rng.integers(len(config.sides))])
    kinds = [(k, w) for k, w in config.weights if w > 0 and (k != "goods" or pool.similar_goods)]
    shares = np.array([weight for _, weight in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))][0]
    film = draw_film(rng, EpisodeConfig(), size)
    make: Callable[..., Product | Arrangement]
    make = arrangement if kind == "arrangement" else MAKERS[kind]
    product, other = make(pool, rng, size), make(pool, rng, size)
    loose = rng.random() > 0.25
    pose = Pose(
        turn=config.turn * rng.random() if loose else 0.5,
        scale=config.scale if loose else (0.995, 1.005),
        shift=0.03 * rng.random() if loose else 0.002,
    )
    defects = DefectConfig(count=(1, 2), area=config.area)
    if isinstance(product, Product) and not product.regular:
        defects = replace(defects, kinds=tuple(k for k in defects.kinds if k not in MOVES))
    donors = [pool.image(int(i)) for i in rng.integers(len(pool), size=3)]
    return Scene(config, film, product, other, pose, defects, donors, size), kind


def change_episode(pool: PhotoPool, config: ChangeConfig, seed: int, index: int) -> Episode:
    """Episode ``index`` of ``seed``."""
    rng = np.random.default_rng((seed, index, 3))
    scene, kind = draw_scene(pool, config, rng)
    shots = int(config.shots[rng.integers(len(config.shots))])
    support = [scene.clean(rng, number) for number in range(shots)]
    is_clean = rng.random(config.queries) < config.clean_share
    is_clean[:2] = (True, False)  # one of either at least
    queries, clean_queries, masks = [], [], []
    for i in range(config.queries):
        if not is_clean[i]:
            good, bad, mask = scene.query(rng, shots + i)
            is_clean[i] = not is_visible(good, bad, mask)
        else:
            good = scene.clean(rng, shots + i)
        if is_clean[i]:
            bad, mask = good, np.zeros((scene.size, scene.size), bool)
        queries.append(bad)
        clean_queries.append(good)
        masks.append(mask)
    return Episode(
        support=np.stack(support),
        query=np.stack(queries),
        clean_query=np.stack(clean_queries),
        masks=np.stack(masks),
        is_clean=is_clean,
        product=scene.product.name,
        kind=kind,
    )
