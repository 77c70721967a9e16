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
      && [...document.querySelectorAll(".card canvas")].every((canvas) => canvas.width > 0);
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
