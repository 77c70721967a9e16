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

from metaformer.data.synthetic.defects import DefectConfig, DefectKind, draw_defect
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
from metaformer.training.episodes.product_samplers import (
    Image,
    Product,
    Specimen,
    pick,
    surface,
)

MARKS: tuple[DefectKind, ...] = (
    "stain",
    "tone",
    "foreign_texture",
    "scratch",
    "crack",
    "cut_paste",
    "noise",
    "illumination",
)
"""Kinds of defects that may be normal marks of a product."""
LEAST_VISIBLE = 2.0
"""Grey levels that an anomaly changes on average, or it is none."""

Draw = Callable[[Generator, int], tuple[Image, Mask | None]]
"""A good specimen with a number, and where its object is if that is known."""


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
    mark_share: float = 0.4
    """Of the episodes, those whose good specimens have marks of one kind at places of their own:
    what the support shows is normal, however much it looks like a defect."""
    varied_share: float = 0.4
    """Of the surfaces, those of several photos of one kind that need not look alike, as good
    pieces of asphalt do not."""
    marks: tuple[int, int] = (2, 6)
    mark_area: tuple[float, float] = (0.0005, 0.02)
    weights: tuple[tuple[TaskKind, float], ...] = (
        ("arrangement", 0.22),
        ("surface", 0.22),
        ("views", 0.12),
        ("scene", 0.13),
        ("part", 0.17),
        ("tiles", 0.08),
        ("goods", 0.06),
    )


def varied_surface(pool: PhotoPool, rng: Generator, size: int) -> Product:
    """Patches of up to eight photos of one kind of material, at one scale."""
    material = pool.of_domain["material"]
    if not material:
        return MAKERS["surface"](pool, rng, size)
    kind = pool.photos[pick(rng, material)].kind
    members = pool.of_kind[kind]
    chosen = [members[int(i)] for i in rng.permutation(len(members))[:8]]
    state = int(rng.integers(2**32))
    made: dict[int, Product] = {}

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        index = chosen[int(rng.integers(len(chosen)))]
        if index not in made:
            made[index] = surface(pool, np.random.default_rng(state), size, index)
        return made[index].draw(rng, number, is_query)

    return Product(kind, draw, regular=False)


@dataclass(frozen=True)
class Marks:
    """Marks that every specimen of a product has, each at another position."""

    config: DefectConfig
    donor: Image

    def on(self, image: Image, rng: Generator) -> Image:
        return draw_defect(image, rng, donor=self.donor, config=self.config)[0]


def draw_marks(rng: Generator, config: ChangeConfig, pool: PhotoPool) -> Marks | None:
    if rng.random() >= config.mark_share:
        return None
    kind = MARKS[int(rng.integers(len(MARKS)))]
    least = int(rng.integers(config.marks[0], config.marks[1] + 1))
    low, high = np.log(config.mark_area)
    area = float(np.exp(rng.uniform(low, high)))
    made = DefectConfig(kinds=(kind,), count=(least, least + 1), area=(area / 2, area))
    return Marks(made, pool.image(int(rng.integers(len(pool)))))


def _with_marks(draw: Draw, marks: Marks) -> Draw:
    def marked(rng: Generator, number: int) -> tuple[Image, Mask | None]:
        image, foreground = draw(rng, number)
        return marks.on(image, rng), foreground

    return marked


def is_visible(good: Image, bad: Image, mask: Mask) -> bool:
    """Whether the anomaly shows: False if it is out of view or overexposed."""
    difference = np.abs(bad[mask].astype(np.int16) - good[mask])
    return bool(mask.any() and difference.mean() >= LEAST_VISIBLE)


def change_episode(pool: PhotoPool, config: ChangeConfig, seed: int, index: int) -> Episode:
    """Episode ``index`` of ``seed``."""
    rng = np.random.default_rng((seed, index, 3))
    size = int(config.sides[rng.integers(len(config.sides))])
    shots = int(config.shots[rng.integers(len(config.shots))])
    kinds = [(k, w) for k, w in config.weights if w > 0 and (k != "goods" or pool.similar_goods)]
    shares = np.array([weight for _, weight in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))][0]
    film = draw_film(rng, EpisodeConfig(), size)
    product: Product | Arrangement
    draw: Draw
    if kind == "arrangement":
        product, other = arrangement(pool, rng, size), arrangement(pool, rng, size)
        draw, draw_other = _of_arrangement(product), _of_arrangement(other)
    else:
        varied = kind == "surface" and rng.random() < config.varied_share
        make = varied_surface if varied else MAKERS[kind]
        product, other_product = (make(pool, rng, size) for _ in range(2))
        draw, draw_other = _of_product(product), _of_product(other_product)
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
    marks = draw_marks(rng, config, pool)
    if marks is not None:
        draw = _with_marks(draw, marks)
        others = tuple(k for k in defects.kinds if k not in marks.config.kinds)
        defects = replace(defects, kinds=others)

    def view(image: Image, moved: NDArray[np.float64]) -> Image:
        return film.load(move(image, moved))

    support = [
        film.expose(view(draw(rng, n)[0], pose.draw(rng, size)), rng)[0] for n in range(shots)
    ]
    is_clean = rng.random(config.queries) < config.clean_share
    is_clean[:2] = (True, False)  # one of either at least
    queries, clean_queries, masks = [], [], []
    for number, clean in enumerate(is_clean, start=shots):
        moved = pose.draw(rng, size)
        if clean:
            image = view(draw(rng, number)[0], moved)
            seen, _ = film.expose(image, rng)
            found = seen, seen, np.zeros((size, size), bool)
        else:
            donor = donors[int(rng.integers(len(donors)))]
            found = _anomaly(
                rng, config, film, product, draw, draw_other, donor, defects, marks, number, moved
            )
            if not is_visible(*found):
                is_clean[number - shots] = True
                found = found[0], found[0], np.zeros((size, size), bool)
        queries.append(found[1])
        clean_queries.append(found[0])
        masks.append(found[2])
    return Episode(
        support=np.stack(support),
        query=np.stack(queries),
        clean_query=np.stack(clean_queries),
        masks=np.stack(masks),
        is_clean=is_clean,
        product=product.name,
        kind=kind,
    )


def _anomaly(
    rng: Generator,
    config: ChangeConfig,
    film: Film,
    product: Product | Arrangement,
    draw: Draw,
    draw_other: Draw,
    donor: Image,
    defects: DefectConfig,
    marks: Marks | None,
    number: int,
    moved: NDArray[np.float64],
) -> tuple[Image, Image, Mask]:
    """A query without and with its anomaly as the camera sees both, and the mask."""
    good, foreground = draw(rng, number)
    side = good.shape[0]
    choice = rng.random()
    if choice < config.blank_share:
        seen, _ = film.expose(film.load(move(good, moved)), rng)
        return seen, blank_frame(rng, seen), np.ones((side, side), bool)
    choice -= config.blank_share
    if choice < config.half_lost_share:
        seen, _ = film.expose(film.load(move(good, moved)), rng)
        changed, mask = half_lost(rng, seen)
        return seen, changed, mask
    choice -= config.half_lost_share
    if choice < config.novel_share:
        bad, mask = draw_other(rng, number)[0], np.ones((side, side), bool)
    elif rng.random() < config.object_share:
        if isinstance(product, Arrangement):
            fault = FAULTS[int(rng.integers(len(FAULTS)))]
            good, bad, mask = product.change(rng, number, fault)
            if marks is not None:  # at the same places of both
                seed = int(rng.integers(2**32))
                good, bad = (marks.on(x, np.random.default_rng(seed)) for x in (good, bad))
        else:
            found = object_change(rng, good, donor, foreground, config.area)
            bad, mask = found or draw_defect(
                good, rng, donor=donor, foreground=foreground, config=defects
            )
    else:
        bad, mask = draw_defect(good, rng, donor=donor, foreground=foreground, config=defects)
    seen_good, seen_bad = film.expose(
        film.load(move(good, moved)), rng, film.load(move(bad, moved))
    )
    return seen_good, seen_bad, move_mask(mask, moved)


def _of_product(product: Product) -> Draw:
    return lambda rng, number: product.draw(rng, number, True)


def _of_arrangement(made: Arrangement) -> Draw:
    return lambda rng, number: (made.draw(rng, number), None)
