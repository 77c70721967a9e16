"""Adding normal images to a detector that exists."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from metaformer.cli import app
from metaformer.detection.adaptation import prepare
from metaformer.detection.detector import Detector
from metaformer.detection.extension import shrinkage
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.pixel.adapted import AdaptedPixel
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.scoring.anomaly_map import image_score
from metaformer.detection.support.support_set import DuplicateSupportWarning, OddSupportWarning
from metaformer.io.images import ImageError
from tests.helpers import boards

pytestmark = pytest.mark.filterwarnings(
    "ignore::metaformer.detection.support.support_set.OddSupportWarning"
)
"""Boards vary more than they should; which of them stand out is not the point here."""

GOOD = [boards.good(seed) for seed in range(8)]


def capped(max_patches: int, *, aligned: bool = False) -> Metaformer:
    universal = Metaformer.from_pretrained(resolution=boards.RESOLUTION, aligned=aligned)
    assert isinstance(universal.model, FeaturePreset)
    return Metaformer(universal.model.with_config(max_patches=max_patches), "feature")


def memory(detector: Detector) -> dict[str, torch.Tensor]:
    """What a detector keeps of its support."""
    return detector.adapted.state()[0]


def assert_same(first: Detector, second: Detector) -> None:
    assert memory(first).keys() == memory(second).keys()
    for name, kept in memory(first).items():
        assert torch.equal(kept, memory(second)[name])
    assert first.calibration == second.calibration
    for name in ("support", "support_scores", "seed", "white_level", "preset"):
        assert first.provenance[name] == second.provenance[name]
    for seed in (100, 101):
        for pixels in (boards.good(seed), boards.defective(seed)):
            assert first.predict(pixels).raw_score == second.predict(pixels).raw_score


# With the whole support kept


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_extending_is_adapting_to_all_at_once(first, aligned, tmp_path):
    """Bit for bit, the detector having been written and read in between."""
    universal = capped(20_000, aligned=aligned)
    names = [boards.write_png(tmp_path / f"{i}.png", GOOD[i]) for i in range(5)]
    universal.adapt(names[:first], seed=3).save(tmp_path / "d.metaformer")
    extended = Detector.load(tmp_path / "d.metaformer").extended_with(names[first:])
    assert_same(extended, universal.adapt(names, seed=3))
    assert [a["calibration"] for a in extended.provenance["additions"]] == ["recomputed"]


def test_images_of_other_sizes_are_added_exactly(tmp_path):
    images = [boards.good(0, height=64, width=96), boards.good(1), boards.good(2, width=200)]
    detector = boards.universal().adapt(images[:2])
    detector.save(tmp_path / "d")
    extended = Detector.load(tmp_path / "d").extended_with(images[2:])
    assert_same(extended, boards.universal().adapt(images))


def test_extending_past_the_cap_is_adapting_at_once_too():
    universal = capped(400)  # two images have 288 patches at the finest level
    first = universal.adapt(GOOD[:2])
    assert first.adapted.is_whole
    extended = first.extended_with(GOOD[2:6])
    whole = universal.adapt(GOOD[:6])
    assert not extended.adapted.is_whole
    assert len(memory(extended)["bank.8"]) == 400
    assert extended.provenance["additions"][0]["calibration"] == "recomputed"
    assert_same(extended, whole)


def test_beyond_the_mirrored_images_is_adapting_at_once_too(tmp_path):
    """Mirror images leave the memory when enough images have come."""
    images = [boards.good(seed) for seed in range(12)]
    detector = boards.universal().adapt(images[:9])
    assert any(name.startswith("mirrored") for name in memory(detector))
    detector.save(tmp_path / "d")
    extended = Detector.load(tmp_path / "d").extended_with(images[9:])
    assert not any(name.startswith("mirrored") for name in memory(extended))
    assert_same(extended, boards.universal().adapt(images))


def test_one_by_one_is_all_at_once():
    detector = boards.universal().adapt(GOOD[:1])
    for image in GOOD[1:4]:
        detector = detector.extended_with([image])
    assert detector.calibration == boards.universal().adapt(GOOD[:4]).calibration
    assert [a["first"] for a in detector.provenance["additions"]] == [1, 2, 3]


def test_the_detector_extended_is_not_changed():
    detector = boards.detector()
    before = json.dumps(detector.provenance), detector.calibration
    detector.extended_with(GOOD[5:])
    assert (json.dumps(detector.provenance), detector.calibration) == before


# With a memory that was cut


def test_the_cap_is_kept_and_the_draw_is_the_same_each_time():
    detector = capped(200).adapt(GOOD[:3], seed=1)
    assert not detector.adapted.is_whole
    first, again = (detector.extended_with(GOOD[3:]) for _ in range(2))
    assert len(memory(first)["bank.8"]) == 200
    assert all(torch.equal(kept, memory(again)[name]) for name, kept in memory(first).items())
    old = {row.numpy().tobytes() for row in memory(detector)["bank.8"]}
    kept = sum(row.numpy().tobytes() in old for row in memory(first)["bank.8"])
    assert 45 <= kept <= 105  # three images of eight: 75 of 200
    assert first.provenance["additions"][0]["calibration"] == "estimated"


def test_aligned_support_images_stay_within_the_cap():
    detector = capped(1200, aligned=True).adapt(GOOD[:3])  # two images of 576 patches fit
    assert not detector.adapted.is_whole
    extended = detector.extended_with(GOOD[3:])
    assert len(extended.adapted.support) == 2
    assert not extended.adapted.is_whole
    assert extended.provenance["additions"][0]["calibration"] == "estimated"


def support_scores(detector: Detector) -> list[float]:
    return [score["raw_score"] for score in detector.provenance["support_scores"]]


def test_earlier_scores_are_lowered_alike_and_new_ones_are_out_of_sample():
    detector = capped(200).adapt(GOOD[:3])
    extended = detector.extended_with(GOOD[3:])
    scores, earlier = support_scores(extended), support_scores(detector)
    assert tuple(sorted(scores)) == extended.calibration.normal_scores
    assert "estimated" in extended.info()["guarantee"]
    assert "estimated" not in detector.info()["guarantee"]
    factors = [new / old for new, old in zip(scores[:3], earlier, strict=True)]
    assert factors == pytest.approx([factors[0]] * 3) and 0.3 < factors[0] <= 1
    # Nothing of an image is in the memory that it is scored against: a lone new image scores as
    # before it came, but for earlier patches that gave way to its own.
    roomy = without_images(boards.roomy().adapt(GOOD[:3]))
    alone = roomy.extended_with(GOOD[3:4])
    raw = image_score(
        roomy.adapted.anomaly_maps(prepare(roomy.model, GOOD[3]))[0],
        roomy.model.config.score_share,
    )
    assert support_scores(alone) == [*support_scores(roomy), pytest.approx(raw, rel=1e-5)]


def test_scores_shrink_by_the_median_and_never_grow():
    assert shrinkage([1.0, 2.0, 4.0], [0.9, 1.2, 1.0]) == pytest.approx(0.6)
    assert shrinkage([1.0, 1.0], [1.3, 1.1]) == 1
    assert shrinkage([0.5], [0.5]) == 1
    assert shrinkage([0.0, 0.0], [0.0, 0.0]) == 0


def without_images(detector: Detector) -> Detector:
    """The same memory bank, not cut, but without the support images."""
    adapted: Any = detector.adapted
    alone = without_support(adapted)
    return Detector(detector.model, alone, detector.calibration, detector.provenance)


def without_support(adapted: AdaptedFeature) -> AdaptedFeature:
    """The same memory bank, without the support images."""
    return AdaptedFeature(
        adapted.config,
        adapted.backbone,
        adapted.bank,
        {},
        adapted.count,
        adapted.frame,
        adapted.correction,
    )


def test_a_whole_bank_without_its_images_is_extended_by_estimate(tmp_path):
    without_images(boards.detector()).save(tmp_path / "d")
    detector = Detector.load(tmp_path / "d")
    assert detector.predict(GOOD[7]).raw_score == boards.detector().predict(GOOD[7]).raw_score
    extended = detector.extended_with(GOOD[3:])
    assert extended.provenance["additions"][0]["calibration"] == "estimated"
    # The bank has room, so it is whole: only the earlier images' scores are estimates.
    whole = boards.detector().extended_with(GOOD[3:])
    for name, rows in whole.adapted.bank.rows.items():
        assert torch.equal(extended.adapted.bank.rows[name], rows)
    estimated, recomputed = support_scores(extended), support_scores(whole)
    # What the transformer standardises by is of the earlier images.
    assert estimated[3:] == pytest.approx(recomputed[3:], rel=0.02)
    assert np.mean(estimated[:3]) < np.mean(support_scores(boards.detector()))


def test_one_image_of_a_cut_memory_needs_two_more(tmp_path):
    detector = capped(100).adapt(GOOD[:1])
    with pytest.raises(ValueError, match="Add two or more"):
        detector.extended_with(GOOD[1:2])
    extended = detector.extended_with(GOOD[1:4])
    assert extended.calibration.rule == "tail" and len(extended.calibration.normal_scores) == 3
    assert [score["index"] for score in extended.provenance["support_scores"]] == [1, 2, 3]
    more = extended.extended_with(GOOD[4:6])
    assert len(more.calibration.normal_scores) == 5


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_pixel_preset_keeps_its_weights_and_takes_in_features(is_whole, tmp_path):
    model = PixelPreset.from_pretrained(PixelConfig(resolution=96))
    made = Metaformer(model, "pixel").adapt(GOOD[:2])
    if not is_whole:
        wrapped: Any = made.adapted
        alone: Any = AdaptedPixel(wrapped.config, without_support(wrapped.model))
        made = Detector(made.model, alone, made.calibration, made.provenance)
    made.save(tmp_path / "d")
    detector = Detector.load(tmp_path / "d")
    extended = detector.extended_with(GOOD[2:4])
    before, after = (d.adapted.backbone.autoencoder.state_dict() for d in (made, extended))
    assert all(torch.equal(before[name], after[name]) for name in before)
    rows = [len(d.adapted.model.bank.rows["8"]) for d in (detector, extended)]
    assert rows == [2 * 144, 4 * 144]
    assert len(extended.calibration.normal_scores) == 4
    how = "recomputed" if is_whole else "estimated"
    assert extended.provenance["additions"][0]["calibration"] == how
    assert extended.predict(GOOD[3]).raw_score < 0.7 * detector.predict(GOOD[3]).raw_score
    extended.save(tmp_path / "e")
    again = Detector.load(tmp_path / "e")
    assert again.predict(GOOD[5]).raw_score == extended.predict(GOOD[5]).raw_score


# What is recorded, what is refused


def test_additions_are_recorded_and_duplicates_left_out(tmp_path):
    paths = [boards.write_png(tmp_path / f"part {i}.png", GOOD[i]) for i in range(6)]
    detector = boards.universal().adapt(paths[:3], seed=5)
    told = r"part 2\.png \(a copy of part 2\.png\), copy\.png \(a copy of part 3\.png\)"
    with pytest.warns(DuplicateSupportWarning, match=told):
        copy = boards.write_png(tmp_path / "copy.png", GOOD[3])
        extended = detector.extended_with([paths[2], paths[3], copy, paths[4]])
    assert [image["name"] for image in extended.provenance["support"]] == [
        "part 0.png", "part 1.png", "part 2.png", "part 3.png", "part 4.png",
    ]  # fmt: skip
    assert (
        extended.provenance["support"][4]["sha256"] == hashlib.sha256(GOOD[4].tobytes()).hexdigest()
    )
    (addition,) = extended.provenance["additions"]
    assert (addition["first"], addition["count"], addition["seed"]) == (3, 2, 5)
    assert addition["made"] >= detector.provenance["made"] and "torch" in addition["versions"]
    assert len(extended.provenance["support_scores"]) == 5

    extended.save(tmp_path / "d")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Detector.load(tmp_path / "d").extended_with(paths[5:])
    assert [a["first"] for a in again.info()["additions"]] == [3, 5]


def test_nothing_new_is_an_error(tmp_path):
    detector = boards.detector()
    with pytest.raises(ValueError, match="of the 2 images given, none is new"):
        detector.extended_with([GOOD[0], GOOD[1]])
    with pytest.raises(ValueError, match="nothing to add"):
        detector.extended_with([])
    with pytest.raises(ImageError, match="no images in this folder"):
        detector.extended_with(tmp_path)
    with pytest.raises(ValueError, match="between 0 and 1"):
        detector.extended_with(GOOD[4:5], false_alarm_rate=1.0)


def test_the_rate_stays_unless_another_is_asked():
    detector = boards.detector().with_false_alarm_rate(0.3)
    assert detector.extended_with(GOOD[4:]).calibration.false_alarm_rate == 0.3
    other = detector.extended_with(GOOD[4:], false_alarm_rate=0.2)
    assert other.calibration.false_alarm_rate == 0.2
    assert other.calibration.rule == "rank"  # three images could not promise it, seven can


def test_an_odd_new_image_is_named():
    detector = boards.universal().adapt(GOOD[:5])
    with pytest.warns(OddSupportWarning, match="image 5"):
        detector.extended_with([boards.defective(3, "77000005")])


# The command


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_extends(tmp_path):
    first = boards.write_good(tmp_path / "first", 3)
    more = boards.write_good(tmp_path / "more", 3, seed=2)  # one of them again
    base, new = tmp_path / "a.metaformer", tmp_path / "b.metaformer"
    assert run("adapt", first, "-o", base, "--resolution", 96).exit_code == 0
    content = base.read_bytes()
    done = run("adapt", "--add", base, more, "-o", new)
    assert done.exit_code == 0, done.output
    assert "adapted to 5 normal images" in done.stdout and "2 of them new" in done.stdout
    assert "the same photo" in done.stderr and done.stderr.count("\n") == 1
    assert base.read_bytes() == content
    info = json.loads(run("info", new, "--json").stdout)
    assert [a["count"] for a in info["additions"]] == [2]

    same = run("adapt", "--add", new, more, "-o", new, "--quiet")
    assert same.exit_code == 1 and "none is new" in same.stderr
    in_place = boards.write_good(tmp_path / "yet more", 1, seed=9)
    printed = run("adapt", "--add", new, in_place, "-o", new, "--json", "--false-alarm-rate", "0.2")
    assert json.loads(printed.stdout)["calibration"]["false_alarm_rate"] == 0.2
    assert len(Detector.load(new).provenance["additions"]) == 2


@pytest.mark.parametrize(
    "option", [["--resolution", "128"], ["--seed", "0"], ["--aligned"], ["--preset", "feature"]]
)
def test_what_the_detector_settles_cannot_be_asked_for(option, tmp_path):
    boards.detector().save(tmp_path / "d")
    more = boards.write_good(tmp_path / "more", 1)
    done = run("adapt", "--add", tmp_path / "d", more, "-o", tmp_path / "e", *option)
    assert done.exit_code == 1 and option[0] in done.stderr and "--add" in done.stderr
    assert not (tmp_path / "e").exists()
