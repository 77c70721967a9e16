"""The report as a file: what it holds, what it keeps, what it lets nobody do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.data.datasets.category import Sample
from metaformer.detection.scoring.overlays import heat_colours
from metaformer.detection.scoring.prediction import Prediction
from metaformer.detection.scoring.regions import find_regions
from metaformer.detection.support.support_thumbnails import GoodExample, make_thumbnail
from metaformer.inference.report.histogram import BINS, PLOT_HEIGHT, draw_histogram
from metaformer.inference.report.html import ReportBuilder
from metaformer.inference.report.thumbnails import (
    fit,
    make_picture,
    shrink_by_maximum,
    trace_outline,
)
from tests.helpers import boards

IMAGE = boards.cut("test", "00041005", 0, 60, 80)
VOID = {"meta", "img", "input", "link", "br", "hr"}


def predict(
    score: float, path: str | None = None, anomaly_map: np.ndarray | None = None
) -> Prediction:
    if anomaly_map is None:
        anomaly_map = np.full(IMAGE.shape[:2], 0.2, dtype=np.float32)
        anomaly_map[10:20, 30:50] = score
    mask = (anomaly_map >= 0.5) & (score >= 0.5)
    regions = find_regions(mask, anomaly_map)
    return Prediction(score, 2 * score, 0.25, score >= 0.5, anomaly_map, mask, regions, path)


class Page(HTMLParser):
    """Elements and texts of a page, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(text)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]

    def cards(self) -> list[int]:
        return [int(a["data-rank"] or "") for a in self.all("article")]

    @property
    def data(self) -> dict[str, Any]:
        (text,) = [text for text in self.texts["script"] if text.startswith("{")]
        return json.loads(text)


def write(builder: ReportBuilder, folder: Path) -> Page:
    return Page(builder.write(folder / "report.html").read_text(encoding="utf-8"))


def pictures(page: Page, tag: str, attribute: str, **wanted: str) -> list[np.ndarray]:
    addresses = [a[attribute] or "" for a in page.all(tag, **wanted) if a.get(attribute)]
    contents = [base64.b64decode(address.split(",", 1)[1]) for address in addresses]
    return [cv2.imdecode(np.frombuffer(c, np.uint8), cv2.IMREAD_UNCHANGED) for c in contents]


# What it shows


def test_images_stand_in_the_order_of_their_scores(tmp_path):
    builder = ReportBuilder({})
    for score in (0.3, 0.9, 0.1, 0.6):
        builder.add(IMAGE, predict(score, f"photos/{score}.png"))
    page = write(builder, tmp_path)
    assert page.cards() == [0, 1, 2, 3]
    assert page.data["names"] == [f"photos/{score}.png" for score in (0.9, 0.6, 0.3, 0.1)]
    assert page.data["scores"] == [0.9, 0.6, 0.3, 0.1]
    assert page.texts["p"].count("photos") == 4
    names = [text for text in page.texts["p"] if text.endswith(".png")]
    assert names == ["0.9.png", "0.6.png", "0.3.png", "0.1.png"]
    pills = [a["class"] for a in page.all("span") if (a.get("class") or "").startswith("verdict")]
    assert pills[:4] == ["verdict bad", "verdict bad", "verdict good", "verdict good"]


def test_the_summary_counts_and_names_threshold_and_rate(tmp_path):
    builder = ReportBuilder({"false-alarm rate asked": "5.0%", "title": "Line 3"})
    for score in (0.3, 0.9, 0.5):
        builder.add(IMAGE, predict(score))
    text = builder.write(tmp_path / "r.html").read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))
    assert "2 of 3 images flagged at threshold 0.500 (false-alarm rate asked: 5.0%)." in words
    assert "<h1>Line 3</h1>" in text and "<title>Line 3</title>" in text


def test_photo_and_map_of_a_card_are_those_of_the_image(tmp_path):
    builder = ReportBuilder({}, thumbnail=80)
    builder.add(IMAGE, predict(0.8))
    page = write(builder, tmp_path)
    photo, *_ = pictures(page, "img", "src")
    assert photo.shape == IMAGE.shape
    assert np.abs(photo[:, :, ::-1].astype(int) - IMAGE).mean() < 6  # JPEG, right channel order
    (levels,) = pictures(page, "img", "src", class_="map")
    assert levels.shape == (30, 40) and levels.dtype == np.uint8
    assert (levels[5:10, 15:25] == 204).all() and levels[0, 0] == 51


def test_channels_are_not_swapped(tmp_path):
    red = np.zeros((20, 20, 3), dtype=np.uint8)
    red[:, :, 0] = 255
    picture = make_picture(red, predict(0.2, anomaly_map=np.zeros((20, 20), np.float32)), 512)
    decoded = cv2.imdecode(np.frombuffer(picture.photo, np.uint8), cv2.IMREAD_COLOR)
    assert decoded[10, 10, 2] > 240 and decoded[10, 10, 0] < 15  # OpenCV decodes to BGR


def test_regions_are_listed_in_pixels_of_the_image(tmp_path):
    builder = ReportBuilder({}, thumbnail=40)  # the thumbnail is half as large
    builder.add(IMAGE, predict(0.8))
    page = write(builder, tmp_path)
    assert page.data["cards"] == {"0": {"size": [80, 60], "regions": [[30, 10, 20, 10, 0.8]]}}
    assert {"30, 10", "20 × 10", "200", "0.800"} <= set(page.texts["td"])


def test_a_thousand_regions_do_not_fill_the_page(tmp_path):
    anomaly_map = np.full(IMAGE.shape[:2], 0.1, dtype=np.float32)
    anomaly_map[::2, ::2] = 0.7
    builder = ReportBuilder({})
    builder.add(IMAGE, predict(0.7, anomaly_map=anomaly_map))
    page = write(builder, tmp_path)
    assert "1200 regions" in page.texts["summary"]
    assert len(page.data["cards"]["0"]["regions"]) == 20
    assert any("1180 more" in text for text in page.texts["p"])


def test_failures_are_listed_with_reasons(tmp_path):
    builder = ReportBuilder({})
    builder.add_failure("a/b.png", "a/b.png: not an image. Convert it.")
    builder.add_failure("c.png", "truncated")
    page = write(builder, tmp_path)
    cells = page.texts["td"]
    assert cells[:2] == ["a/b.png", "not an image. Convert it."]  # the name is not said twice
    assert [text for text in cells if text.strip()][2:4] == ["c.png", "truncated"]
    assert "2 files could not be read." in page.texts["a"]


def test_settings_are_spelled_out_and_special_ones_left_out(tmp_path):
    builder = ReportBuilder(
        {
            "preset": "feature",
            "seed": 0,
            "inside": {"layers": [3, 4], "aligned": False, "rate": 0.1 + 0.2},
            "note": None,
            "title": "T",
            "support_scores": [0.2],
        }
    )
    page = write(builder, tmp_path)
    assert page.all("th", scope="row") == [{"scope": "row"}] * 4
    shown = [text for text in page.texts["div"] if text.strip()]
    wanted = ["feature", "0", "layers: 3, 4", "aligned: no", "rate: 0.3", "none"]
    assert [text for text in shown if text in wanted] == wanted
    assert "support_scores" not in page.texts["th"]


def test_an_empty_report_is_whole(tmp_path):
    page = write(ReportBuilder({}), tmp_path)
    assert page.cards() == [] and page.data["scores"] == []
    assert "No image was scored." in page.texts["p"]


# What it keeps


@given(
    scores=st.lists(st.integers(1, 999).map(lambda n: n / 1000), max_size=40, unique=True),
    places=st.integers(0, 25),
)
def test_pictures_are_the_highest_scores_and_a_few_doubtful_normal_ones(scores, places):
    builder = ReportBuilder({}, max_images=places, thumbnail=16)
    for score in scores:
        builder.add(IMAGE, predict(score))
    flagged = sorted((s for s in scores if s >= 0.5), reverse=True)
    normal = sorted((s for s in scores if s < 0.5), reverse=True)
    for_normal = max(min(len(normal), places // 10), places - len(flagged))
    expected = flagged[: places - min(len(normal), places // 10)] + normal[:for_normal]
    kept = [entry[0] for entry in [*builder._flagged, *builder._normal]]
    assert sorted(kept, reverse=True) == expected  # in whatever order they came


def test_lines_of_an_earlier_run_are_ranked_without_a_picture(tmp_path):
    builder = ReportBuilder({})
    builder.add_scored("old.png", score=0.7, p_value=0.1, is_anomalous=True)
    builder.add(IMAGE, predict(0.6, "new.png"))
    page = write(builder, tmp_path)
    assert page.data["names"] == ["old.png", "new.png"]
    assert page.cards() == [1]
    assert any("1 of 2 have a picture here" in text for text in page.texts["p"])


def test_a_score_rounded_in_a_file_keeps_its_verdict(tmp_path):
    builder = ReportBuilder({})
    builder.add_scored("normal.png", score=0.5, p_value=0.1, is_anomalous=False)
    builder.add_scored("bad.png", score=0.4999, p_value=0.1, is_anomalous=True)
    assert write(builder, tmp_path).data["scores"] == [0.5, np.nextafter(0.5, 0)]


def test_memory_does_not_grow_with_the_images():
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    anomaly_map = rng.random((256, 256), dtype=np.float32)
    builder = ReportBuilder({}, max_images=5)

    def grow(count: int) -> int:
        for _ in range(count):
            prediction = predict(float(rng.random()), anomaly_map=anomaly_map)
            builder.add(image, prediction)
        return tracemalloc.get_traced_memory()[0]

    builder.add(image, predict(0.4, anomaly_map=anomaly_map * 0.4))
    tracemalloc.start()
    try:
        early = grow(30)
        late = grow(120)
    finally:
        tracemalloc.stop()
    assert late - early < 120 * 500  # one map alone is 262,144 bytes


def test_a_hundred_thousand_lines_make_a_small_page(tmp_path):
    builder = ReportBuilder({})
    for i, score in enumerate(np.random.default_rng(0).beta(2, 6, 100_000).tolist()):
        builder.add_scored(f"photos/{i:06}.png", score=score, p_value=0.5, is_anomalous=score > 0.5)
    path = builder.write(tmp_path / "r.html")
    assert path.stat().st_size < 7_000_000
    assert path.read_text().count("<tr>") < 5  # rows are made by the page as they are looked at


# What it lets nobody do

HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    '"><script>alert(1)</script>.png',
    "' onmouseover='alert(1).png",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "{{ 7 * 7 }}.png",
    "a&lt;b.png",
    "javascript:alert(1)",
    "\u2028\u202egnp.exe",
    "line\nbreak.png",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text_wherever_it_appears(name, tmp_path):
    def elements(name: str) -> list[tuple[str, list[str]]]:
        builder = ReportBuilder({name: {name: name}, "title": name, "list": [name]})
        builder.add(IMAGE, predict(0.8, name))
        builder.add_scored(name, score=0.2, p_value=0.1, is_anomalous=False)
        builder.add_failure(name, name)
        page = write(builder, tmp_path)
        assert page.data["names"] == [name, name]
        assert page.texts["title"][:1] == page.texts["h1"] == [name]
        return [(tag, sorted(attributes)) for tag, attributes in page.elements]

    # A slash splits a name into folder and file, on two lines.
    assert elements(name) == elements("folder/plain.png" if "/" in name else "plain.png")


def test_a_name_that_is_no_text_is_shown_as_escapes(tmp_path):
    builder = ReportBuilder({})
    builder.add(IMAGE, predict(0.8, "caf\udce9.png"))
    builder.add_failure("\udcff.png", "\udcff.png: not an image")
    page = write(builder, tmp_path)  # reads it as strict UTF-8
    assert page.data["names"] == ["caf\\udce9.png"]
    assert "\\udcff.png" in page.texts["td"]


def test_nothing_is_asked_of_the_network(tmp_path):
    builder = ReportBuilder({"support_scores": [0.2]})
    builder.add(IMAGE, predict(0.8))
    page = write(builder, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert "url(" not in "".join(page.texts["style"]).replace("url(#", "")
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_the_policy_names_the_script_and_style_by_their_hash(tmp_path):
    builder = ReportBuilder({})
    builder.add(IMAGE, predict(0.8))
    page = write(builder, tmp_path)
    (policy,) = [a for a in page.all("meta") if "http-equiv" in a]
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.split(" ", 1) for rule in (policy["content"] or "").split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    script = next(text for text in page.texts["script"] if not text.startswith("{"))
    for rule, content in (("script-src", script), ("style-src", page.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


# For everyone


def test_everything_operable_has_a_name_and_ids_are_unique(tmp_path):
    builder = ReportBuilder({"support_scores": [0.2]})
    builder.add(IMAGE, predict(0.8, "a.png"))
    builder.add_failure("b.png", "broken")
    page = write(builder, tmp_path)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for attributes in page.all("a"):
        assert (attributes["href"] or "")[1:] in ids
    for tag, attributes in page.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name) is None or attributes[name] in ids
        if tag == "img":
            assert "alt" in attributes
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
    assert page.all("html", lang="en")
    assert page.all("meta", name="viewport", content="width=device-width, initial-scale=1")
    assert page.all("button", class_="frame")[0]["aria-label"] == "Enlarge a.png"
    style = page.texts["style"][0]
    assert "prefers-color-scheme: dark" in style and "prefers-reduced-motion" in style


# Errors


def test_what_cannot_be_shown_is_refused(tmp_path):
    builder = ReportBuilder({})
    with pytest.raises(ValueError, match=r"\(60, 80, 3\).*\(5, 5\)"):
        builder.add(IMAGE, predict(0.8, anomaly_map=np.zeros((5, 5), np.float32)))
    with pytest.raises(ValueError, match=r"x\.png.*\[0, 1\].*nan"):
        builder.add_scored("x.png", score=float("nan"), p_value=0.1, is_anomalous=False)
    with pytest.raises(ValueError, match=r"max_images.*-1"):
        ReportBuilder({}, max_images=-1)
    with pytest.raises(ValueError, match=r"thumbnail.*8"):
        ReportBuilder({}, thumbnail=8)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        builder.write(tmp_path / "nowhere" / "r.html")
    assert write(builder, tmp_path).data["names"] == []  # what was refused left no trace


# Pictures and histogram


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 512))
def test_thumbnails_keep_the_aspect_and_never_enlarge(width, height, side):
    small = fit(width, height, side)
    assert max(small) <= max(side, 1) and min(small) >= 1
    assert small[0] <= width and small[1] <= height
    if max(width, height) <= side:
        assert small == (width, height)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_no_peak_is_lost_in_the_small_map(height, width, data):
    small_height = data.draw(st.integers(1, height))
    small_width = data.draw(st.integers(1, width))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    anomaly_map = rng.random((height, width), dtype=np.float32)
    small = shrink_by_maximum(anomaly_map, small_width, small_height)
    assert small.shape == (small_height, small_width)
    assert small.max() == anomaly_map.max()
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    near = np.argwhere(small == anomaly_map.max())[0]
    assert abs(near[0] - row * small_height / height) <= 1
    assert abs(near[1] - column * small_width / width) <= 1


@given(st.lists(st.floats(0, 1), max_size=300))
def test_every_score_is_in_one_bar_on_its_side_of_the_threshold(scores):
    histogram = draw_histogram({"": scores}, [])
    (row,) = histogram.rows
    assert sum(bar.count for bar in row.bars) == len(scores)
    right = sum(bar.count for bar in row.bars if bar.left >= 50)
    assert right == sum(score >= 0.5 for score in scores)
    assert all(0 < bar.height <= PLOT_HEIGHT for bar in row.bars)
    assert len(row.bars) <= BINS
    counts = [line.count for line in row.grid]
    assert counts == sorted(set(counts)) and 0 not in counts


def test_one_defect_among_many_shows_and_support_is_marked():
    histogram = draw_histogram({"": [0.2] * 100_000 + [0.9]}, [0.21, 0.3])
    (row,) = histogram.rows
    assert row.bars[-1].count == 1 and row.bars[-1].height >= 3
    assert histogram.support == (21, 30)


def test_the_page_gets_the_same_heat_colours(tmp_path):
    sent = base64.b64decode(write(ReportBuilder({}), tmp_path).data["heat"])
    assert sent == heat_colours().tobytes()


# Very many images


def test_the_listing_can_be_limited_and_says_so(tmp_path):
    builder = ReportBuilder({}, max_lines=3, max_images=0)
    for i in range(1, 10):
        builder.add(IMAGE, predict(i / 10, f"{i}.png"))
    for i in range(5):
        builder.add_failure(f"bad{i}.png", "damaged")
    page = write(builder, tmp_path)
    assert page.data["names"] == ["9.png", "8.png", "7.png"]
    text = " ".join(page.texts["p"])
    assert "In all 9 images were scored and 5 flagged" in text
    assert "lists the 3 with the highest scores" in text
    assert "and 2 more, listed in failures.csv" in text
    content = builder.write(tmp_path / "again.html").read_text()
    assert "Histogram of 9 scores" in content and "5 files could not be read." in content


def test_a_limit_leaves_no_picture_without_its_line(tmp_path):
    builder = ReportBuilder({}, max_lines=2, max_images=10, thumbnail=16)
    for i in range(30):
        builder.add(IMAGE, predict(0.5 + i / 100 if i else 0.4, f"{i}.png"))
    page = write(builder, tmp_path)
    assert page.data["names"] == [*(f"{i}.png" for i in range(29, 20, -1)), "0.png"]
    assert page.cards() == list(range(10))


def test_a_report_that_is_not_limited_says_nothing_of_it(tmp_path):
    builder = ReportBuilder({}, max_lines=2)
    builder.add(IMAGE, predict(0.4))
    assert not any("In all" in text for text in write(builder, tmp_path).texts["p"])


def test_no_limit_under_one():
    with pytest.raises(ValueError, match="max_lines"):
        ReportBuilder({}, max_lines=0)


# Truth, links, crops


def known(is_defective: bool, *masks: Path) -> Sample:
    return Sample(Path("x.png"), is_defective, masks, "scratch" if is_defective else "good")


def add_known(builder: ReportBuilder, *cases: tuple[float, bool | None]) -> None:
    for score, is_defective in cases:
        truth = None if is_defective is None else known(is_defective)
        builder.add(IMAGE, predict(score, f"{score}.png"), truth=truth)


def test_truth_divides_the_histogram_and_is_counted_at_every_threshold(tmp_path):
    builder = ReportBuilder({})
    add_known(builder, (0.9, True), (0.4, True), (0.7, False), (0.2, False), (0.6, None))
    page = write(builder, tmp_path)
    assert page.data["truths"] == [True, False, None, True, False]
    titles = [text for text in page.texts["text"] if text.startswith("tru")]
    assert titles == ["truly good", "truly defective", "truth not known"]
    above = page.data["above"]
    for cut in (0, 0.2, 0.205, 0.4, 0.7, 0.9, 0.905, 1):
        at = round(cut * 200)
        assert above["defective"][at] == sum(score >= cut for score in (0.9, 0.4))
        assert above["good"][at] == sum(score >= cut for score in (0.7, 0.2))
    outcomes = [text for text in page.texts["b"] if text in ("Caught", "Missed", "Correct")]
    assert outcomes == ["Caught", "Missed", "Correct"] and "False alarm" in page.texts["b"]
    assert page.all("input", value="missed")


def test_without_truth_nothing_is_said_of_it(tmp_path):
    builder = ReportBuilder({})
    builder.add(IMAGE, predict(0.8))
    page = write(builder, tmp_path)
    assert "truths" not in page.data and not page.all("input", value="missed")
    assert not page.all("p", id="outcomes") and len(page.all("line", class_="axis")) == 1


def test_wrong_verdicts_keep_their_pictures_before_all_others(tmp_path):
    builder = ReportBuilder({}, max_images=4, thumbnail=16)
    add_known(builder, *((0.6 + i / 100, True) for i in range(20)), (0.1, True), (0.55, False))
    pictured = write(builder, tmp_path).cards()
    names = write(builder, tmp_path).data["names"]
    assert {"0.1.png", "0.55.png"} < {names[rank] for rank in pictured} and len(pictured) == 4


def test_the_true_outline_is_in_pixels_of_the_image(tmp_path):
    mask = np.zeros((120, 160), np.uint8)  # of twice the image's size
    mask[20:41, 60:101] = 255
    path = boards.write_png(tmp_path / "m.png", mask)
    builder = ReportBuilder({}, thumbnail=16)
    builder.add(IMAGE, predict(0.8), truth=known(True, path))
    ((outline,),) = [card["truth"] for card in write(builder, tmp_path).data["cards"].values()]
    xs, ys = outline[::2], outline[1::2]
    assert (min(xs), max(xs), min(ys), max(ys)) == (30, 50, 10, 20)


def test_a_ragged_mask_does_not_fill_the_page():
    rng = np.random.default_rng(0)
    outline = trace_outline(rng.random((700, 900)) > 0.5, 900, 700)
    assert sum(len(points) // 2 for points in outline) < 4000
    assert len(json.dumps(outline)) < 40_000


def test_a_mask_of_another_shape_is_left_out_and_named(tmp_path):
    path = boards.write_png(tmp_path / "m.png", np.full((60, 60), 255, np.uint8))
    builder = ReportBuilder({})
    with pytest.warns(UserWarning, match=r"outline is left out: .*m\.png: mask of \(60, 60\)"):
        builder.add(IMAGE, predict(0.8), truth=known(True, path))
    assert "truth" not in write(builder, tmp_path).data["cards"]["0"]


def test_the_image_file_is_linked_to_from_the_report(tmp_path):
    odd = tmp_path / "photos" / "50 % <b>#1?.png"
    boards.write_png(odd, IMAGE)
    builder = ReportBuilder({})
    builder.add(IMAGE, predict(0.8, str(odd)))
    builder.add(IMAGE, predict(0.7, "javascript:alert(1)"))
    (tmp_path / "out").mkdir()
    page = write(builder, tmp_path / "out")
    links = [a["href"] for a in page.all("a", class_="original") if a["href"] != "#images"]
    assert links == ["./../photos/50%20%25%20%3Cb%3E%231%3F.png"]
    assert not any("javascript" in (a.get("href") or "") for _, a in page.elements)


def test_crops_hold_the_original_pixels(tmp_path):
    image = np.zeros((600, 800, 3), np.uint8)
    image[300:310, 400:410] = 255
    anomaly_map = np.full((600, 800), 0.1, np.float32)
    anomaly_map[298:312, 398:412] = 0.9
    builder = ReportBuilder({}, thumbnail=64)
    builder.add(image, predict(0.9, anomaly_map=anomaly_map))
    crop = pictures(write(builder, tmp_path), "img", "src")[2]
    assert crop.shape == (62, 62, 3)  # the region and 24 pixels around it
    assert (crop[:, :, 0] > 200).sum() == pytest.approx(100, abs=20)


def test_the_nearest_good_image_is_stored_once(tmp_path):
    good = GoodExample("good <1>.png", make_thumbnail(IMAGE))
    builder = ReportBuilder({})
    for score in (0.8, 0.9):
        builder.add(IMAGE, predict(score), find_good=lambda image: good)
    page = write(builder, tmp_path)
    assert [name for name, _ in page.data["goods"]] == ["good <1>.png"]
    assert [card["good"] for card in page.data["cards"].values()] == [0, 0]
