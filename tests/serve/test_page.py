"""The service's page in a real browser: a person's way from good photos to a report.

Needs `pip install 'metaformer-ad[browser,serve]'` and Chromium on the machine.
"""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import metaformer
from metaformer.data.datasets.layouts import BAD_NAMES, GOOD_NAMES
from metaformer.data.datasets.truth import GOOD_LABELS, PLAIN_BAD_LABELS
from metaformer.detection.detector import Detector
from metaformer.detection.scoring.overlays import heat_colours
from metaformer.inference.scores.rows import COLUMNS
from tests.helpers import boards

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the service's packages are not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

from tests.helpers.service import server  # noqa: E402  (needs the service's packages)

PAGE = Path(metaformer.__file__).parent / "serve" / "static"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
MARKUP = "<img src=x onerror=alert(1)>.png"
"""A file name that would run a script if it were ever taken for HTML."""

# Lowest contrast of text against its background, with what it was found on; what is switched off
# and what only screen readers get is left out.
LOW_CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest(":disabled, .off, .unseen, .skip, option, .blank, script")) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(parse(ink)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (isLarge ? 3 : 4.5)) found.push([ratio.toFixed(2), element.outerHTML.slice(0, 90)]);
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll("a, button, input, select, progress, dialog")]
  .filter((each) => each.checkVisibility())
  .filter((each) => !(each.ariaLabel || each.textContent.trim()
    || [...(each.labels || [])].some((label) => label.textContent.trim())))
  .map((each) => each.outerHTML.slice(0, 90))"""
SMALL = """() => [...document.querySelectorAll("button, .button, nav a, select, summary")]
  .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 43.9)
  .map((each) => each.outerHTML.slice(0, 90))"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[str, list[Path]]:
    """Files as a camera leaves them: good ones to adapt to, and a mixed batch."""
    folder = tmp_path_factory.mktemp("photos")
    good = [folder / f"good-{i}.png" for i in range(5)]
    for i, path in enumerate(good):
        Image.fromarray(boards.good(i)).save(path)
    new = {
        "ok.png": boards.good(50),
        "scratched.png": boards.defective(60),
        MARKUP: boards.good(51),
    }
    for name, pixels in new.items():
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(boards.defective(61)).save(folder / "scan.tif")  # browsers cannot show it
    (folder / "cut-short.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(40))
    (folder / "notes.txt").write_text("not a photo")
    batch = [*new, "scan.tif", "cut-short.jpg", "notes.txt"]
    return {"good": good, "new": [folder / name for name in batch]}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("store")) as (address, _):
        yield address


@contextmanager
def opened(
    browser: Any, address: str, *, refused: tuple[int, ...] = (), **options: Any
) -> Iterator[Any]:
    """The page; afterwards it has asked no other host, logged nothing and raised nothing.

    Args:
        refused: statuses the browser may log, being the point of the test.
    """
    trouble: list[str] = []

    def log(message: Any) -> None:
        if not any(f"status of {status} " in message.text for status in refused):
            trouble.append(f"{message.type}: {message.text}")

    def check(request: Any) -> None:
        if not request.url.startswith((address, "blob:", "data:")):
            trouble.append(f"asked {request.url}")

    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", log)
    page.on("pageerror", lambda error: trouble.append(f"raised {error}"))
    context.on("request", check)
    page.goto(address)
    try:
        yield page
        assert trouble == []
    finally:
        context.close()


def wait_until(is_so: Callable[[], Any], seconds: float = 60) -> None:
    """The page's policy forbids the strings as code that playwright would wait with."""
    ends = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)


def make(page: Any, photos: list[Path], name: str) -> None:
    page.click("#to-make")
    page.set_input_files("#good-files", photos)
    page.fill("#name", name)
    page.click("#make-button")
    page.locator("#made").wait_for()


def score(page: Any, photos: list[Path]) -> None:
    page.set_input_files("#new-files", photos)
    wait_until(lambda: "Done" in page.locator("#score-live").inner_text())
    # Results are drawn once a frame.
    wait_until(lambda: page.locator("#count-all").text_content() not in ("", "0"))
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def cards(page: Any) -> dict[str, tuple[str, str]]:
    """Name -> (verdict, score) of the cards, in their order."""
    return {
        card.locator(".name").inner_text(): (
            card.locator(".verdict").inner_text(),
            card.locator(".score").inner_text(),
        )
        for card in page.locator(".card").all()
    }


def slide(page: Any, value: float) -> None:
    page.locator("#cut").fill(str(value))
    page.wait_for_timeout(100)


@pytest.fixture(scope="module")
def detector(browser, address, photos) -> str:
    """Made by way of the page; its id."""
    with opened(browser, address) as page:
        make(page, photos["good"], "board <b>A</b>")
        assert (
            page.locator("#made-title").inner_text() == "The detector of “board <b>A</b>” is ready"
        )
        assert "5 normal images cannot guarantee" in page.locator("#made-promise").inner_text()
    (found,) = httpx.get(f"{address}/api/detectors").json()["detectors"]
    assert (found["name"], found["support_count"]) == ("board <b>A</b>", 5)
    return found["id"]


@pytest.fixture(scope="module")
def expected(address, detector, photos) -> dict[str, float]:
    """Name -> score, asked for without the page."""
    files = [("images", (path.name, path.read_bytes())) for path in photos["new"][:4]]
    answer = httpx.post(f"{address}/api/detectors/{detector}/predict", files=files, timeout=60)
    return {found["name"]: found["score"] for found in answer.json()["predictions"]}


def test_colours_are_those_of_the_reports():
    table = "".join(re.findall(r'\+ "([^"]+)"', (PAGE / "heat.js").read_text(encoding="utf-8")))
    assert base64.b64decode(table) == heat_colours().tobytes()


def test_folders_and_labels_mean_the_same_as_to_the_command_line():
    for script, name, names in (
        ("truth.js", "GOOD_NAMES", GOOD_NAMES),
        ("truth.js", "BAD_NAMES", BAD_NAMES),
        ("labels.js", "GOOD_LABELS", GOOD_LABELS - GOOD_NAMES),
        ("labels.js", "PLAIN_BAD_LABELS", PLAIN_BAD_LABELS - BAD_NAMES),
    ):
        text = (PAGE / script).read_text(encoding="utf-8")
        (listed,) = re.findall(rf"{name} = \[(.*?)\]", text, re.DOTALL)
        assert re.findall(r'"(.*?)"', listed) == sorted(names)


def test_photos_are_ranked_by_their_real_scores(browser, address, detector, expected, photos):
    with opened(browser, address, refused=(422,)) as page:
        score(page, photos["new"])
        shown = cards(page)
        ranked = sorted(expected, key=lambda name: -expected[name])
        assert list(shown) == ranked
        assert {name: text for name, (_, text) in shown.items()} == {
            name: f"{int(value * 1000 + 1e-6) / 1000:.3f}" for name, value in expected.items()
        }
        for name, (verdict, _) in shown.items():
            assert verdict == ("Flagged" if expected[name] >= 0.5 else "OK")
        assert {shown[name][0] for name in ("scratched.png", "scan.tif")} == {"Flagged"}
        unread = page.locator("#unread-rows").inner_text()
        assert "cut-short.jpg" in unread and "damaged" in unread
        assert "notes.txt" in unread and "text/plain" in unread
        said = page.locator("#failed-words").inner_text()  # beside the place they were chosen
        assert said.startswith("2 photos not scored.") and "cut-short.jpg" in said


def test_the_slider_judges_anew(browser, address, expected, photos):
    with opened(browser, address) as page:
        score(page, photos["new"][:4])
        for cut in (0.01, 0.5, 0.99):
            slide(page, cut)
            flagged = sum(value >= cut for value in expected.values())
            assert page.locator("#live").inner_text() == f"{flagged} flagged, {4 - flagged} OK"
            verdicts = [verdict for verdict, _ in cards(page).values()]
            assert verdicts == ["Flagged"] * flagged + ["OK"] * (4 - flagged)
            assert page.locator("#moved").is_visible() == (cut != 0.5)
        page.locator("#tools").get_by_text("OK", exact=False).first.click()
        slide(page, 0.5)
        assert set(cards(page)) == {name for name, value in expected.items() if value < 0.5}


def painted(page: Any, card: int) -> int:
    """Pixels of the card's canvas with ink on them."""
    script = """(canvas) => {
      if (canvas.hidden || !canvas.width) return 0;
      const { width, height } = canvas, copy = Object.assign(document.createElement("canvas"), {
        width, height,
      });
      const context = copy.getContext("2d", { willReadFrequently: true });
      context.drawImage(canvas, 0, 0);
      const { data } = context.getImageData(0, 0, width, height);
      return data.filter((value, at) => at % 4 === 3 && value > 0).length;
    }"""
    return page.locator(".card canvas").nth(card).evaluate(script)


def test_heat_is_painted_over_what_is_flagged(browser, address, expected, photos):
    with opened(browser, address) as page:
        score(page, [path for path in photos["new"] if path.name == "scratched.png"])
        wait_until(lambda: painted(page, 0) > 500)
        page.get_by_text("Photo", exact=True).click()
        wait_until(lambda: painted(page, 0) == 0)
        page.get_by_text("Heat map", exact=True).click()
        side = page.locator(".card canvas").first.evaluate(
            "(canvas) => canvas.width * canvas.height"
        )
        wait_until(lambda: painted(page, 0) >= 0.99 * side)
        page.locator(".card .frame").click()
        assert page.locator("#viewer").evaluate("(dialog) => dialog.matches(':modal')")
        assert page.locator("#viewer-regions tbody tr").count() >= 1


def downloaded_rows(page: Any, folder: Path) -> dict[str, dict[str, str]]:
    """The page's own scores by path."""
    with page.expect_download() as download:
        page.click("#csv")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_downloads_hold_what_the_page_shows(browser, address, detector, expected, photos, tmp_path):
    with opened(browser, address, refused=(422,), color_scheme="dark") as page:
        score(page, photos["new"])
        rows = downloaded_rows(page, tmp_path)
        assert (tmp_path / "board-b-A-b-scores.csv").exists()
        with page.expect_download() as download:
            page.click("#report")
        download.value.save_as(tmp_path / "report.html")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the detector of board").click()
        download.value.save_as(tmp_path / "it.metaformer")
    assert {name: float(row["score"]) for name, row in rows.items()} == pytest.approx(
        expected, abs=1e-6
    )
    assert list(next(iter(rows.values()))) == list(COLUMNS)
    assert {row["is_anomalous"] for row in rows.values()} == {"true", "false"}
    assert {row["size"] for row in rows.values()} == {
        str(photo.stat().st_size) for photo in photos["new"] if photo.name in rows
    }
    restored = Detector.load(tmp_path / "it.metaformer")
    scratched = restored.predict(photos["new"][1])
    assert scratched.score == pytest.approx(expected["scratched.png"], abs=1e-6)

    report = tmp_path / "report.html"
    assert "<img src=x" not in report.read_text(encoding="utf-8")
    with opened(browser, report.as_uri()) as page:
        assert page.title() == "Inspection report: board <b>A</b>"
        assert [card.inner_text() for card in page.locator(".card .name").all()] == sorted(
            expected, key=lambda name: -expected[name]
        )
        assert page.locator("#cut").is_visible()  # the page of the command line, slider and all
        assert "cut-short.jpg" in page.locator(".unread").inner_text()


def test_a_report_prints_the_regions_with_their_crops(browser, address, detector, photos, tmp_path):
    """Paper cannot be clicked; afterwards what was closed is closed again."""
    report = tmp_path / "report.html"
    with opened(browser, address) as page:
        score(page, [photos["new"][1], photos["new"][3]])
        with page.expect_download() as download:
            page.click("#report")
        download.value.save_as(report)
    with opened(browser, report.as_uri()) as page:
        crops = page.locator(".card .crops img")
        assert crops.count() >= 2 and not crops.last.is_visible()
        page.locator(".card summary").first.click()
        page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
        assert all(crop.is_visible() for crop in crops.all())
        wait_until(lambda: crops.last.evaluate("(crop) => crop.complete && crop.naturalWidth > 0"))
        page.evaluate("() => dispatchEvent(new Event('afterprint'))")
        is_open = page.locator(".card details").evaluate_all("(all) => all.map((one) => one.open)")
        assert is_open == [True, False]
        page.evaluate("() => { window.print = () => { window.printed = true; }; }")
        page.click("#print")
        wait_until(lambda: page.evaluate("() => window.printed"))
        assert crops.last.is_visible()


# The review


def drop_tree(page: Any, files: dict[str, Path]) -> None:
    """Choose files as if they came from folders: path in the tree -> file."""
    contents = [
        [path, base64.b64encode(file.read_bytes()).decode()] for path, file in files.items()
    ]
    page.locator("#new-files").evaluate(
        """(input, contents) => {
          const transfer = new DataTransfer();
          for (const [path, content] of contents) {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const file = new File([bytes], path.split("/").at(-1), { type: "image/png" });
            Object.defineProperty(file, "webkitRelativePath", { value: path });
            transfer.items.add(file);
          }
          Object.defineProperty(input, "files", { value: [...transfer.files], configurable: true });
          contents.forEach(([path], i) => Object.defineProperty(
            input.files[i], "webkitRelativePath", { value: path },
          ));
          input.dispatchEvent(new Event("change"));
        }""",
        contents,
    )


def test_folders_say_what_is_true(browser, address, detector, photos, tmp_path):
    good, bad = photos["new"][0], photos["new"][1]
    with opened(browser, address) as page:
        drop_tree(page, {"set/test/good/a.png": good, "set/test/scratch/b.png": bad})
        wait_until(lambda: page.locator(".card .truth:visible").count() == 2)
        assert page.locator("#outcomes").inner_text() == (
            "caught 1 of 1 · missed 0 · false alarms 0 of 1 good"
        )
        assert "truly defective: scratch" in page.locator(".card").first.inner_text()
        slide(page, 0.99)
        assert "missed 1" in page.locator("#outcomes").inner_text()
        page.locator("#show-missed").click()
        wait_until(lambda: page.locator(".card .name").all_text_contents() == ["b.png"])
        titles = page.locator("#plot .row-title").all_text_contents()
        assert titles == ["truly good", "truly defective"]
        assert downloaded_rows(page, tmp_path)["set/test/scratch/b.png"]["truth"] == "scratch"


def test_a_table_of_labels_is_the_truth(browser, address, detector, photos, tmp_path):
    """Dropped with the photos, or after them; it goes before what folders say."""
    mask = np.zeros((boards.SIDE, boards.SIDE), np.uint8)
    mask[30:60, 20:80] = 255
    boards.write_png(tmp_path / "m.png", mask)
    first, later, wrong = (tmp_path / f"{name}.csv" for name in ("first", "later", "wrong"))
    first.write_text(
        'Label;"file";mask\nscratch, deep;set/b.png;outlines/1.png\nok;"a.png";\npass;none.png;\n'
    )
    later.write_text("c.png,NG\n")
    wrong.write_text("nonsense\n")
    good, bad = photos["new"][0], photos["new"][1]
    with opened(browser, address) as page:
        drop_tree(
            page,
            {
                "set/b.png": bad,
                "set/a.png": good,
                "good/c.png": good,
                "set/outlines/1.png": tmp_path / "m.png",
                "first.csv": first,
            },
        )
        wait_until(lambda: page.locator(".card .truth:visible").count() == 3)
        assert "3 labels read, 1 of no photo here. 1 mask taken" in page.inner_text("#new-state")
        assert "truly defective: scratch, deep" in page.locator(".card").first.inner_text()
        drop_tree(page, {"later.csv": later, "wrong.csv": wrong})
        wait_until(lambda: "wrong.csv" in page.locator(".unread").inner_text())
        assert "line 1 is “nonsense”" in page.locator(".unread").inner_text()
        assert "of 2 · missed" in page.locator("#outcomes").inner_text()
        rows = downloaded_rows(page, tmp_path)
        assert {path: row["truth"] for path, row in rows.items()} == {
            "set/a.png": "good",
            "set/b.png": "scratch, deep",
            "good/c.png": "defect",
        }
        page.reload()
        wait_until(lambda: page.locator(".card .truth:visible").count() == 3)
        assert "of 2 · missed" in page.locator("#outcomes").inner_text()


def test_masks_are_ground_truth_and_drawn_as_outlines(browser, address, detector, photos, tmp_path):
    mask = np.zeros((boards.SIDE, boards.SIDE), np.uint8)
    mask[30:60, 20:80] = 255
    boards.write_png(tmp_path / "m.png", mask)
    boards.write_png(tmp_path / "empty.png", np.zeros_like(mask))
    good, bad = photos["new"][0], photos["new"][1]
    with opened(browser, address) as page:
        drop_tree(
            page,
            {
                "set/test/good/a.png": good,
                "set/test/scratch/b.png": bad,
                "set/ground_truth/scratch/b_mask.png": tmp_path / "m.png",
                "other/c.png": good,
                "other/c_mask.png": tmp_path / "empty.png",
            },
        )
        wait_until(lambda: page.locator(".card .truth:visible").count() == 3)
        assert "2 masks taken for the ground truth" in page.locator("#new-state").inner_text()
        white = """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4) count += data[i] > 250 && data[i + 2] > 250;
          return count;
        }"""
        wait_until(lambda: page.locator(".card canvas").first.evaluate(white) > 50)
        assert page.locator(".card canvas").nth(1).evaluate(white) == 0
        with page.expect_download() as download:
            page.click("#report")
        download.value.save_as(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    content = json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])
    assert content["cards"]["0"]["truth"] == [[20, 30, 80, 30, 80, 60, 20, 60]]
    assert sorted(content["truths"]) == [False, False, True]


def test_a_review_from_marks_to_a_better_detector(browser, photos, tmp_path):
    other = tmp_path / "other-place.png"  # flagged, and good after all
    Image.fromarray(boards.good(7, "77000005")).save(other)
    with server(tmp_path / "store") as (address, _), opened(browser, address) as page:
        make(page, photos["good"], "board")
        page.click("#made-next")
        score(page, [other, photos["new"][1], photos["new"][0]])
        card = page.locator(".card", has_text="other-place.png")
        assert card.locator(".verdict").inner_text() == "Flagged"
        assert page.locator("#add-good").is_hidden()
        card.get_by_role("button", name="Good after all").click()
        card.locator(".mark-note").fill("the other side")
        card.locator(".mark-note").press("Tab")
        wait_until(lambda: page.locator("#add-good").is_visible())
        bad = page.locator(".card", has_text="scratched.png")
        bad.get_by_role("button", name="Defective").click()
        wait_until(lambda: "caught 1 of 1" in page.locator("#outcomes").inner_text())

        page.reload()  # nothing is lost
        wait_until(lambda: page.locator(".card").count() == 3)
        wait_until(lambda: "caught 1 of 1" in page.locator("#outcomes").inner_text())
        card = page.locator(".card", has_text="other-place.png")
        assert card.locator(".mark-note").input_value() == "the other side"

        page.click("#add-good")
        wait_until(lambda: "6 good photos now" in page.locator("#review-state").inner_text())
        wait_until(lambda: page.locator("#count-all").text_content() == "3")
        verdict = page.locator(".card", has_text="other-place.png").locator(".verdict")
        wait_until(lambda: verdict.text_content() == "OK")
        assert "6 good photos" in page.locator("#products").inner_text()
        with page.expect_download() as download:
            page.click("#marks-csv")
        download.value.save_as(tmp_path / "marks.csv")
        with (tmp_path / "marks.csv").open(newline="", encoding="utf-8") as file:
            marks = {row["file"]: row for row in csv.DictReader(file)}
        assert marks["other-place.png"]["note"] == "the other side"
        assert {name: row["label"] for name, row in marks.items()} == {
            "other-place.png": "good",
            "scratched.png": "defective",
        }
        page.click("#clear")
        page.reload()
        page.locator("#check").wait_for()
        assert not cards(page)


def test_a_moved_threshold_is_kept_as_another_rate(browser, photos, tmp_path):
    with server(tmp_path / "store") as (address, _), opened(browser, address) as page:
        make(page, photos["good"], "board")
        page.click("#made-next")
        score(page, photos["new"][:2])
        slide(page, 0.6)
        wait_until(lambda: page.locator("#keep-cut").is_enabled())
        assert "false-alarm rate of" in page.locator("#moved-words").inner_text()
        page.click("#keep-cut")
        wait_until(lambda: "Kept" in page.locator("#review-state").inner_text())
        wait_until(lambda: page.locator(".card").count() == 2)
        assert page.locator("#cut").input_value() == "0.5"
        assert not page.locator("#moved").is_visible()
        (found,) = httpx.get(f"{address}/api/detectors").json()["detectors"]
        assert found["false_alarm_rate"] < 0.05


def test_the_enlarged_photo_zooms_and_has_a_good_one_beside_it(browser, address, detector, photos):
    with opened(browser, address) as page:
        score(page, [photos["new"][1]])
        page.locator(".card .frame").click()
        assert page.locator("#good-photo-name").inner_text().startswith("good-")
        assert page.locator("#viewer-crops img").count() >= 1
        page.keyboard.press("+")
        wait_until(
            lambda: "scale(1.5)" in page.locator("#layer").evaluate("(e) => e.style.transform")
        )
        page.keyboard.press("0")
        wait_until(
            lambda: "scale(1)" in page.locator("#layer").evaluate("(e) => e.style.transform")
        )


def test_the_addresses_can_be_read_without_a_network(browser, address):
    with opened(browser, address) as page:
        page.goto(f"{address}/docs")
        wait_until(lambda: page.locator(".opblock").count() > 12)
        page.locator(".opblock", has_text="/health").first.click()
        page.get_by_role("button", name="Try it out").first.click()
        page.get_by_role("button", name="Execute").first.click()
        wait_until(lambda: '"status": "ok"' in page.locator(".live-responses-table").inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_can_be_read_and_reached(browser, address, detector, photos, width, scheme):
    size = {"width": width, "height": 800}
    with opened(browser, address, viewport=size, color_scheme=scheme) as page:
        page.click("#to-make")
        page.set_input_files("#good-files", photos["good"][:2])
        page.locator("#good-list img").nth(1).wait_for()
        page.locator("summary").first.click()
        assert "few" in page.locator("#good-count").inner_text()
        faults = {script: page.evaluate(script) for script in (LOW_CONTRAST, NAMELESS, SMALL)}
        assert list(faults.values()) == [[], [], []] and page.evaluate(WIDER) <= 0
        page.click("#to-check")
        score(page, photos["new"][:4])
        faults = {script: page.evaluate(script) for script in (LOW_CONTRAST, NAMELESS, SMALL)}
        assert list(faults.values()) == [[], [], []] and page.evaluate(WIDER) <= 0
        page.locator(".card .frame").first.click()
        assert page.evaluate(LOW_CONTRAST) == [] and page.evaluate(WIDER) <= 0


def tab_to(page: Any, selector: str, key: str = "Tab") -> None:
    for _ in range(60):
        page.keyboard.press(key)
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
    raise AssertionError(f"{selector} is not reached by {key}")


def test_the_keyboard_alone_is_enough(browser, photos, tmp_path):
    with server(tmp_path / "store") as (address, _), opened(browser, address) as page:
        choosers: list[Any] = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))
        page.reload()
        tab_to(page, "#good-files")
        page.keyboard.press("Enter")
        wait_until(lambda: page.wait_for_timeout(50) or len(choosers) == 1)
        choosers[0].set_files(photos["good"])
        page.locator("#good-list img").nth(4).wait_for()
        tab_to(page, "#good-list button")
        page.keyboard.press("Enter")  # remove the first; the focus goes to its neighbour
        assert page.locator("#good-list li").count() == 4
        assert page.evaluate("() => document.activeElement.ariaLabel") == "Remove good-1.png"
        tab_to(page, "#name")
        tab_to(page, "#make-button")
        page.keyboard.press("Enter")
        assert page.locator("#name-error").inner_text() == "Give the product a name."
        page.keyboard.type("board")  # the focus is where the fault is
        page.keyboard.press("Enter")
        page.locator("#made").wait_for()
        tab_to(page, "#made-next")
        page.keyboard.press("Enter")
        wait_until(lambda: page.evaluate("() => document.activeElement.id") == "check-title")
        tab_to(page, "#new-files")
        page.keyboard.press("Space")
        wait_until(lambda: page.wait_for_timeout(50) or len(choosers) == 2)
        choosers[1].set_files(photos["new"][:3])
        wait_until(lambda: page.locator(".card").count() == 3)
        tab_to(page, "#cut")
        page.keyboard.press("ArrowRight")
        wait_until(lambda: page.locator("#cut").get_attribute("aria-valuetext").startswith("0.505"))
        tab_to(page, "[name=view]")
        page.keyboard.press("ArrowRight")
        assert page.locator("[name=view]:checked").get_attribute("value") == "heat"
        tab_to(page, ".frame")
        name = page.evaluate("() => document.activeElement.ariaLabel")
        page.keyboard.press("Enter")
        for _ in range(8):  # the dialog keeps the focus; the browser's own bar may have it between
            page.keyboard.press("Tab")
            assert page.evaluate(
                "() => document.activeElement === document.body"
                " || Boolean(document.activeElement.closest('#viewer'))"
            )
        page.keyboard.press("Escape")
        assert page.evaluate("() => document.activeElement.ariaLabel") == name
        tab_to(page, ".product button[aria-label^=Delete]", "Shift+Tab")
        page.keyboard.press("Enter")
        tab_to(page, "#delete-yes")
        page.keyboard.press("Enter")
        page.locator("#no-products").wait_for()
        assert httpx.get(f"{address}/health").json()["detectors"] == 0


def test_the_white_level_is_sent_and_refused_beside_the_button(browser, photos, tmp_path):
    with (
        server(tmp_path / "store") as (address, _),
        opened(browser, address, refused=(422,)) as page,
    ):
        page.set_input_files("#good-files", photos["good"][:2])
        page.fill("#name", "board")
        page.click("summary")
        page.fill("#white-level", "0")
        page.click("#make-button")
        wait_until(lambda: "white_level" in page.locator("#make-error").inner_text())
        page.fill("#white-level", "4095")
        page.click("#make-button")
        page.locator("#made").wait_for()
        (made,) = httpx.get(f"{address}/api/detectors").json()["detectors"]
        info = httpx.get(f"{address}/api/detectors/{made['id']}").json()["info"]
        assert info["white_level"] == 4095


def test_photos_removed_while_pictures_are_made_leave_no_gap(browser, address, detector, photos):
    with opened(browser, address) as page:
        page.click("#to-make")
        page.set_input_files("#good-files", photos["good"])
        page.locator("#good-list button").first.click()
        wait_until(lambda: page.locator("#good-list img").count() == 4)
        assert page.locator("#good-list .blank").count() == 0
        page.click("#remove-all")
        assert page.locator("#good-list li").count() == 0
        assert page.evaluate("() => document.activeElement.id") == "good-files"


def test_photos_can_be_dropped(browser, address, detector, photos):
    with opened(browser, address) as page:
        content = base64.b64encode(photos["new"][0].read_bytes()).decode()
        transfer = page.evaluate_handle(
            """(content) => {
              const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
              return transfer;
            }""",
            content,
        )
        page.dispatch_event("footer", "drop", {"dataTransfer": transfer})  # missed: nothing happens
        assert page.locator(".card").count() == 0
        page.dispatch_event("#new-drop", "drop", {"dataTransfer": transfer})
        wait_until(lambda: list(cards(page)) == ["dropped.png"])


def test_a_token_is_asked_for_and_kept_for_the_tab(browser, tmp_path):
    with (
        server(tmp_path / "store", "--token", "s3cret word") as (address, _),
        opened(browser, address, refused=(401,)) as page,
    ):
        page.locator("#token-dialog").wait_for()
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        wait_until(lambda: "does not accept" in page.locator("#token-error").inner_text())
        page.fill("#token", "s3cret word")
        page.keyboard.press("Enter")
        page.locator("#token-dialog").wait_for(state="hidden")
        page.click("#to-check")
        page.locator("#no-products").wait_for()
        page.reload()
        page.locator("#no-products").wait_for()
        assert not page.locator("#token-dialog").is_visible()
        assert "s3cret" not in page.url


def test_a_busy_server_is_waited_for(browser, photos, tmp_path):
    with (
        server(tmp_path / "store", "--max-requests", "1") as (address, _),
        opened(browser, address, refused=(429,)) as page,
    ):
        make(page, photos["good"], "board")
        page.click("#made-next")
        score(page, photos["new"][:4] + photos["good"])
        assert page.locator(".card").count() == 9
        assert not page.locator("#unread").is_visible()


def test_a_lost_server_is_told_of_and_can_be_tried_again(browser, photos, tmp_path):
    with (
        server(tmp_path / "store") as (address, _),
        opened(browser, address, refused=(500,)) as page,
    ):
        make(page, photos["good"], "board")
        page.click("#made-next")
        page.route("**/predict?*", lambda route: route.fulfill(status=500, body="{}"))
        page.set_input_files("#new-files", photos["new"][0])
        page.locator("#again").wait_for()
        assert "answered 500" in page.locator("#unread-rows").inner_text()
        page.unroute("**/predict?*")
        page.click("#again")
        wait_until(lambda: list(cards(page)) == ["ok.png"])
        assert not page.locator("#unread").is_visible()


def test_files_are_few_and_small():
    for path in PAGE.glob("*.js"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 300, path.name
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|\beval\(|innerHTML", text), path.name
