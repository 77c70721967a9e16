from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.data.synthetic.defects import (
    KINDS,
    MIN_PIXELS,
    NOTICEABLE,
    VISIBLE,
    DefectConfig,
    draw_defect,
)


def scene(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A bright disc with grain on a dark ramp: edges, texture and a plain part."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.repeat((40 + 60 * x / width)[..., None], 3, axis=2)
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2
    image[disc] = rng.normal((200, 120, 60), 12, (int(disc.sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.abs(before.astype(int) - after.astype(int)).max(axis=2)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(8, 150),
    width=st.integers(8, 150),
    kind=st.sampled_from([None, *KINDS]),
    with_donor=st.booleans(),
    with_foreground=st.booleans(),
)
def test_mask_is_exactly_where_pixels_changed(
    seed, height, width, kind, with_donor, with_foreground
):
    image = scene(seed, height, width)
    donor = scene(seed + 1, 40, 70)[..., ::-1].copy() if with_donor else None
    foreground = image[..., 0] > 110 if with_foreground else None
    config = DefectConfig() if kind is None else DefectConfig(kinds=(kind,))
    kept = image.copy()
    drawn, mask = draw_defect(
        image, np.random.default_rng(seed), donor=donor, foreground=foreground, config=config
    )
    assert np.array_equal(image, kept)
    assert drawn.dtype == np.uint8 and drawn.shape == image.shape
    assert mask.dtype == np.bool_ and mask.shape == image.shape[:2]
    assert mask.sum() >= MIN_PIXELS
    assert np.array_equal(drawn[~mask], image[~mask])
    seen = change(image, drawn) > VISIBLE
    assert mask[seen].all()
    # Closing fills gaps between changed pixels; it reaches no further than two pixels.
    near = cv2.dilate(seen.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert near[mask].all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_noticeable_defects_of_its_own(kind):
    """On a patterned image no kind needs the fallback square more than now and then.

    Faint light on a pattern is the hardest to notice, so it needs it most often.
    """
    rng = np.random.default_rng(0)
    pattern = cv2.resize(rng.integers(50, 206, (32, 32, 3), dtype=np.uint8), (128, 128))
    donor = scene(3)
    config = DefectConfig(kinds=(kind,), count=(1, 1), area=(0.01, 0.1))
    fallbacks = 0
    for _ in range(40):
        drawn, mask = draw_defect(pattern, rng, donor=donor, config=config)
        amount = change(pattern, drawn)
        assert amount[mask].mean() >= NOTICEABLE / 2
        fallbacks += int(mask.sum() == 64 and (amount[mask] == 96).all())
    assert fallbacks <= 10


def test_sizes_and_counts_span_the_configured_range():
    image, donor, rng = scene(0, 128, 128), scene(1), np.random.default_rng(5)
    shares = np.array([draw_defect(image, rng, donor=donor)[1].mean() for _ in range(400)])
    assert np.quantile(shares, 0.05) < 0.004
    assert np.quantile(shares, 0.95) > 0.06
    assert shares.max() < 0.45  # three defects of 15 % at most

    small = DefectConfig(area=(0.001, 0.004), kinds=("stain", "cut_paste"), count=(1, 1))
    shares = np.array(
        [draw_defect(image, rng, donor=donor, config=small)[1].mean() for _ in range(50)]
    )
    assert shares.max() < 0.016  # soft edges reach beyond the area aimed at
    assert shares.min() > 0.0005


def test_faint_and_strong_defects_both_occur():
    image, rng = scene(0, 128, 128), np.random.default_rng(2)
    strengths = []
    for _ in range(300):
        drawn, mask = draw_defect(image, rng, config=DefectConfig(count=(1, 1)))
        strengths.append(change(image, drawn)[mask].mean())
    assert np.mean(np.array(strengths) < 20) > 0.1
    assert np.mean(np.array(strengths) > 60) > 0.1


def test_defects_sit_on_the_foreground():
    image = scene(0, 128, 128)
    foreground = np.zeros((128, 128), bool)
    foreground[10:40, 80:120] = True  # 7 % of the image
    rng = np.random.default_rng(1)
    config = DefectConfig(count=(1, 1), area=(0.001, 0.01), kinds=("tone", "noise", "stain"))
    hits = [
        foreground[draw_defect(image, rng, foreground=foreground, config=config)[1]].any()
        for _ in range(120)
    ]
    assert 0.75 < np.mean(hits) < 1.0


def test_empty_foreground_means_anywhere():
    image = scene(0)
    nowhere = np.zeros(image.shape[:2], bool)
    _, mask = draw_defect(image, np.random.default_rng(0), foreground=nowhere)
    assert mask.any()


def test_same_seed_gives_the_same_defect_and_another_seed_another():
    image, donor = scene(0), scene(1)
    first, first_mask = draw_defect(image, np.random.default_rng(7), donor=donor)
    again, again_mask = draw_defect(image, np.random.default_rng(7), donor=donor)
    other, _ = draw_defect(image, np.random.default_rng(8), donor=donor)
    assert np.array_equal(first, again) and np.array_equal(first_mask, again_mask)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_colour_stay_without_colour(kind):
    grey = np.repeat(scene(0)[..., :1], 3, axis=2)
    rng = np.random.default_rng(0)
    for _ in range(8):
        drawn, _ = draw_defect(grey, rng, donor=scene(1), config=DefectConfig(kinds=(kind,)))
        assert np.array_equal(drawn[..., 0], drawn[..., 1])
        assert np.array_equal(drawn[..., 0], drawn[..., 2])


def test_blur_of_a_plain_image_falls_back_to_a_visible_square():
    """Nothing can be blurred there, yet the mask must not be empty, nor lie."""
    plain = np.full((64, 64, 3), 200, np.uint8)
    config = DefectConfig(kinds=("blur",))
    drawn, mask = draw_defect(plain, np.random.default_rng(0), config=config)
    assert 16 <= mask.sum() <= 64
    assert (drawn[mask] == 104).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ()}, "kinds: found none; accepted"),
        ({"kinds": ("rust",)}, r"kinds: found \['rust'\]; accepted"),
        ({"count": (0, 2)}, "count: found"),
        ({"area": (0.1, 0.01)}, "area: found"),
        ({"opacity": (0.2, 1.5)}, "opacity: found"),
        ({"on_foreground": 1.2}, "on_foreground: found"),
    ],
)
def test_config_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        DefectConfig(**arguments)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((64, 64), np.uint8), {}, "image: found uint8 of shape"),
        (np.zeros((64, 64, 3), np.float32), {}, "image: found float32"),
        (np.zeros((4, 64, 3), np.uint8), {}, "image: found 64 x 4 pixels"),
        (scene(0), {"donor": np.zeros((64, 64), np.uint8)}, "donor: found"),
        (scene(0), {"foreground": np.zeros((3, 3), bool)}, "foreground: found bool"),
    ],
)
def test_bad_input_is_refused(image, options, message):
    with pytest.raises(ValueError, match=message):
        draw_defect(image, np.random.default_rng(0), **options)
