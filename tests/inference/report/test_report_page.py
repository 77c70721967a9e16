"""The report in a browser: the script does what the page promises. Needs Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaformer.data.datasets.category import Sample
from metaformer.detection.scoring.prediction import Prediction
from metaformer.detection.scoring.regions import find_regions
from metaformer.inference.report.html import ReportBuilder
from tests.helpers import boards

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

IMAGE = boards.cut("test", "00041005", 0, 60, 80)
POLICY = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
SCORES = (0.9, 0.62, 0.45, 0.2)

# The page has been read, its script has run, and the maps near the top have been drawn.
LOADED = """
new Promise((done) => {
  const look = () => {
    const isDone = document.readyState === "complete" && document.getElementById("data")
      && [...document.querySelectorAll(".card canvas")].slice(0, 4)
        .every((canvas) => canvas.width > 0);
    if (isDone) requestAnimationFrame(done); else setTimeout(look, 20);
  };
  look();
})
"""

# Moves the controls as a user would and writes down what the page then shows.
DRIVER = """
// The page works once a frame, so two frames later it has.
const frame = () => new Promise((done) => requestAnimationFrame(done));
const settle = async () => { await frame(); await frame(); };
const set = async (id, value) => {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
  await settle();
};
const look = () => ({
  flagged: document.getElementById("flagged").textContent,
  counts: [...document.querySelectorAll(".choice i")].map((count) => count.textContent),
  line: document.getElementById("cut-line").getAttribute("x1"),
  support: document.getElementById("support").textContent,
  verdicts: [...document.querySelectorAll(".card .verdict")].map((pill) => pill.textContent.trim()),
  moved: [...document.querySelectorAll(".card .changed")].map((note) => !note.hidden),
  shown: [...document.querySelectorAll(".card")].map((card) => !card.hidden),
  rows: [...document.querySelectorAll("#rows tr")].map((row) => row.children[1].textContent),
  outlined: [...document.querySelectorAll(".card canvas")].map((canvas) => {
    if (!canvas.width || !canvas.height) return 0;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let cyan = 0;
    for (let i = 0; i < data.length; i += 4) {
      cyan += data[i] < 60 && data[i + 1] > 200 && data[i + 2] > 220 && data[i + 3] > 200;
    }
    return cyan;
  }),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
});
const seen = { start: look() };
await set("cut", 0.7); seen.high = look();
await set("cut", 0.4); seen.low = look();
document.getElementById("reset").click(); await settle(); seen.reset = look();
await set("outline", false); seen.plain = look();
await set("outline", true);
document.querySelector("input[name=show][value=good]").click(); await settle();
seen.good = look();
document.querySelector("input[name=show][value=all]").click();
await set("find", "0.62"); seen.found = look();
await set("find", "");
document.querySelectorAll(".frame")[1].click(); await settle();
const viewer = document.getElementById("viewer");
const name = () => document.getElementById("viewer-name").textContent;
seen.viewer = [viewer.open, name()];
viewer.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
seen.viewer.push(name());
viewer.close();
const small = [...document.querySelectorAll("button, input[type=range], summary, .choice span")]
  .filter((control) => control.offsetParent && control.getBoundingClientRect().height < 43.9);
seen.small = small.map((control) => control.outerHTML.slice(0, 80));
return seen;
"""


class Browser:
    """A Chromium, driven through its debugging pipe: one JSON message after another."""

    def __init__(self, profile: Path) -> None:
        commands, self.out = os.pipe()
        self.answers, results = os.pipe()
        flags = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
        )
        self.process = subprocess.Popen(
            # The browser reads commands from descriptor 3 and answers on 4.
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{results}', "bash", str(CHROMIUM), *flags],
            pass_fds=(commands, results),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(results)
        self.buffer = b""
        self.count = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    session: str | None = None

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": arguments}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                piece = os.read(self.answers, 1 << 16)
                assert piece, "the browser has gone"
                self.buffer += piece
            line, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, page: Path, width: int, script: str) -> Any:
        """Open the page on a screen of this width; what the script's promise comes to."""
        size = {"width": width, "height": 3600, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=page.as_uri())
        script = f"(async () => {{ await {LOADED}; {script} }})()"
        done = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.out)
        os.close(self.answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def write_report(folder: Path) -> Path:
    builder = ReportBuilder({"support_scores": [0.22, 0.3, 0.44]})
    for score in SCORES:
        anomaly_map = np.full(IMAGE.shape[:2], 0.1, dtype=np.float32)
        anomaly_map[20:40, 30:50] = score
        mask = (anomaly_map >= 0.5) & (score >= 0.5)
        regions = find_regions(mask, anomaly_map)
        name = f"photos/{score}.png"
        builder.add(
            IMAGE,
            Prediction(score, score, 0.2, score >= 0.5, anomaly_map, mask, regions, name),
        )
    builder.add_failure("x" * 90 + ".png", "broken")
    return builder.write(folder / "report.html")


@pytest.fixture(scope="module", params=[1280, 390])
def seen(request, browser, tmp_path_factory) -> dict[str, Any]:
    return browser.run(write_report(tmp_path_factory.mktemp("page")), request.param, DRIVER)


def test_the_slider_judges_every_image_anew(seen):
    assert seen["start"]["verdicts"] == ["Defective", "Defective", "Normal", "Normal"]
    assert seen["high"]["verdicts"] == ["Defective", "Normal", "Normal", "Normal"]
    assert seen["low"]["verdicts"] == ["Defective", "Defective", "Defective", "Normal"]
    assert seen["high"]["moved"] == [False, True, False, False]
    assert seen["low"]["moved"] == [False, False, True, False]
    assert seen["reset"] == seen["start"]


def test_counts_line_and_support_follow_the_slider(seen):
    assert [seen[step]["flagged"] for step in ("start", "high", "low")] == ["2", "1", "3"]
    assert seen["low"]["counts"] == ["4", "3", "1"]
    assert [seen[step]["line"] for step in ("start", "high", "low")] == ["50%", "70%", "40%"]
    assert "0 of the 3 normal scores" in seen["start"]["support"]
    assert "1 of the 3 normal scores" in seen["low"]["support"]


def test_outlines_follow_the_slider(seen):
    def outlined(step: str) -> list[bool]:
        return [cyan > 20 for cyan in seen[step]["outlined"]]

    assert outlined("start") == [True, True, False, False]
    assert outlined("high") == [True, False, False, False]
    assert outlined("low") == [True, True, True, False]
    assert outlined("plain") == [False] * 4


def test_filters_hide_cards_and_rows_alike(seen):
    assert seen["good"]["shown"] == [False, False, True, True]
    assert seen["good"]["rows"] == ["0.45.pngphotos", "0.2.pngphotos"]
    assert seen["found"]["shown"] == [False, True, False, False]
    assert len(seen["start"]["rows"]) == 4


def test_the_enlarged_view_opens_and_steps(seen):
    assert seen["viewer"] == [True, "0.62.png", "0.45.png"]


def test_it_fits_the_screen_and_the_finger(seen):
    assert seen["start"]["wide"] <= 0
    assert seen["small"] == []


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_policy_lets_the_pages_own_script_run_and_no_other(is_kept, browser, tmp_path):
    page = write_report(tmp_path)
    text = page.read_text(encoding="utf-8")
    intruder = "<script>document.title = 'intruded'</script>"
    text = text.replace("</main>", f"{intruder}</main>")
    page.write_text(text if is_kept else re.sub(POLICY, "", text), encoding="utf-8")
    look = "return [document.title, document.getElementById('count-bad').textContent]"
    title = "Inspection report" if is_kept else "intruded"
    assert browser.run(page, 1280, look) == [title, "2"]  # the count is from the page's script


def test_a_hundred_thousand_images_are_judged_without_delay(browser, tmp_path):
    builder = ReportBuilder({})
    for i, score in enumerate(np.random.default_rng(0).beta(2, 6, 100_000).tolist()):
        builder.add_scored(f"{i:06}.png", score=score, p_value=0.5, is_anomalous=score >= 0.5)
    script = """
      document.getElementById("cut").value = 0.3;
      const start = performance.now();
      judge();
      const seconds = (performance.now() - start) / 1000;
      return [seconds, document.getElementById("flagged").textContent];
    """
    seconds, flagged = browser.run(builder.write(tmp_path / "r.html"), 1280, script)
    assert seconds < 1  # measured: 0.01
    expected = sum(score >= 0.3 for score in builder._scores)
    assert flagged == f"{expected:,}"


# Truth, zoom, labels, print


def write_known(folder: Path) -> Path:
    """Four images of known truth: caught, false alarm, missed, correct."""
    mask = np.zeros(IMAGE.shape[:2], np.uint8)
    mask[18:42, 28:52] = 255
    path = boards.write_png(folder / "m.png", mask)
    builder = ReportBuilder({})
    for score, is_defective in zip(SCORES, (True, False, True, False), strict=True):
        anomaly_map = np.full(IMAGE.shape[:2], 0.1, dtype=np.float32)
        for left in range(30, 50, 4):  # five regions, too near each other for five labels
            anomaly_map[20:40, left : left + 2] = score
        found = (anomaly_map >= 0.5) & (score >= 0.5)
        prediction = Prediction(
            score, score, 0.2, score >= 0.5, anomaly_map, found, find_regions(found, anomaly_map)
        )
        masks = (path,) if is_defective else ()
        truth = Sample(Path("x.png"), is_defective, masks, "scratch" if is_defective else "good")
        builder.add(IMAGE, prediction, truth=truth)
    return builder.write(folder / "known.html")


TRUTH = """
const frame = () => new Promise((done) => requestAnimationFrame(done));
const look = async () => {
  await frame(); await frame();
  return [
    document.getElementById("outcomes").textContent,
    [...document.querySelectorAll(".outcome")].map((label) => label.textContent),
    [...document.querySelectorAll(".card")].map((card) => !card.hidden),
  ];
};
const slide = (value) => {
  document.getElementById("cut").value = value;
  document.getElementById("cut").dispatchEvent(new Event("input", { bubbles: true }));
};
const show = (name) => document.querySelector(`input[name=show][value=${name}]`).click();
const seen = [await look()];
slide(0.65); seen.push(await look());
show("missed"); seen.push(await look());
slide(0.3); show("alarm"); seen.push(await look());
return seen;
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_caught_missed_and_false_alarms_follow_the_slider(browser, tmp_path, width):
    start, high, missed, alarm = browser.run(write_known(tmp_path), width, TRUTH)
    assert start[0] == "caught 1 of 2 · missed 1 · false alarms 1 of 2 good"
    assert start[1] == ["Caught", "False alarm", "Missed", "Correct"]
    assert high[0] == "caught 1 of 2 · missed 1 · false alarms 0 of 2 good"
    assert high[1] == ["Caught", "Correct", "Missed", "Correct"]
    assert missed[2] == [False, False, True, False]
    assert alarm[0] == "caught 2 of 2 · missed 0 · false alarms 1 of 2 good"
    assert alarm[2] == [False, True, False, False]


def test_the_true_outline_is_drawn_and_can_be_hidden(browser, tmp_path):
    script = """
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const white = () => [...document.querySelectorAll(".card canvas")].map((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let i = 0; i < data.length; i += 4) {
        count += data[i] > 250 && data[i + 1] > 250 && data[i + 2] > 250 && data[i + 3] > 250;
      }
      return count > 20;
    });
    const before = white();
    document.getElementById("true-outline").click();
    await frame(); await frame();
    return [before, white()];
    """
    shown, hidden = browser.run(write_known(tmp_path), 1280, script)
    assert shown == [True, False, True, False] and hidden == [False] * 4


def test_the_enlarged_view_zooms_where_the_wheel_turns_and_stays_sharp(browser, tmp_path):
    script = """
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const settle = async () => { await frame(); await frame(); };
    document.querySelector(".frame").click();
    await new Promise((done) => setTimeout(done, 100));
    const stage = document.getElementById("stage"), layer = document.getElementById("layer");
    const canvas = document.getElementById("viewer-canvas"), box = stage.getBoundingClientRect();
    const small = canvas.width;
    stage.dispatchEvent(new WheelEvent("wheel", {
      deltaY: -500, clientX: box.left, clientY: box.top, cancelable: true,
    }));
    await settle();
    const zoomed = layer.getBoundingClientRect();
    const corner = [zoomed.left - box.left, zoomed.top - box.top, zoomed.width / box.width];
    const large = canvas.width;
    for (let i = 0; i < 30; i++) document.getElementById("zoom-in").click();
    await settle();
    const most = canvas.width;
    document.getElementById("zoom-reset").click();
    await settle();
    return [corner, large / small, most, canvas.width === small, layer.style.transform];
    """
    corner, finer, most, is_back, transform = browser.run(write_known(tmp_path), 1280, script)
    assert corner == pytest.approx([0, 0, np.exp(500 / 400)], abs=0.5)
    assert finer == pytest.approx(corner[2], rel=0.02)
    assert most == 4096 and is_back and transform == "translate(0px, 0px) scale(1)"


def test_numbers_of_regions_do_not_cover_each_other(browser, tmp_path):
    script = """
    const crowd = Array.from({ length: 20 }, (_, i) => [i, 100 + 3 * i, 50 + (i % 3), 8, 8]);
    return placeTags(crowd, 400, 300, 20, 4).map(([, left, top]) => [left, top]);
    """
    places = browser.run(write_known(tmp_path), 1280, script)
    assert len(places) == 20
    for i, (left, top) in enumerate(places):
        assert 0 <= left <= 380 and 0 <= top <= 280
        for other_left, other_top in places[:i]:
            assert abs(left - other_left) > 20 or abs(top - other_top) > 20


def test_printing_paints_every_map_and_lets_go_of_them_afterwards(browser, tmp_path):
    builder = ReportBuilder({})
    anomaly_map = np.full(IMAGE.shape[:2], 0.6, dtype=np.float32)
    mask = np.ones(IMAGE.shape[:2], bool)
    for _ in range(60):
        builder.add(IMAGE, Prediction(0.6, 1, 0.1, True, anomaly_map, mask, ()))
    page = builder.write(tmp_path / "r.html")
    script = """
    const painted = () => [...document.querySelectorAll(".card canvas")]
      .filter((canvas) => canvas.width > 0).length;
    window.dispatchEvent(new Event("beforeprint"));
    const all = painted();
    window.dispatchEvent(new Event("afterprint"));
    return [all, painted()];
    """
    everything, left = browser.run(page, 390, script)
    assert everything == 60 and left < 60
