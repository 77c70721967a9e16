// Ranked results: histogram, threshold, cards, and the list of files without a score.

import { arrange, byId, fileName, make, number, save } from "./elements.js";
import { cardOf, paintCards } from "./cards.js";
import { drawHistogram } from "./histogram.js";
import { paintRamp } from "./overlay.js";
import { makeReport } from "./report.js";
import { batch, reason } from "./scoring.js";
import { scoresCsv } from "./table.js";
import { enlarge, repaintViewer, setUpViewer } from "./viewer.js";

const THRESHOLD = 0.5;  // the detector's own, for every detector
const PAGE = 60;  // cards at first, and added at a time
let most = PAGE;
let version = "";

const limit = () => Number(byId("cut").value);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

// Scored entries, highest first; ties by name, so that the order does not depend on the network.
export function ranked() {
  return batch.entries.filter(({ state }) => state === "scored")
    .sort((a, b) => b.score - a.score || (a.path < b.path ? -1 : 1));
}

function visible(entries) {
  const show = chosen("show"), cut = limit();
  return entries.filter(({ score }) => show === "all" || (show === "bad") === (score >= cut));
}

export function setUpResults(serverVersion) {
  version = serverVersion;
  paintRamp(byId("ramp"));
  setUpViewer(() => ({ entries: visible(ranked()), limit: limit(), view: chosen("view") }));
  for (const form of [byId("cutter"), byId("tools")]) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => { most = PAGE; update(); });
  }
  byId("reset").addEventListener("click", () => {
    byId("cut").value = THRESHOLD;
    update();
    byId("cut").focus();
  });
  byId("more").addEventListener("click", () => { most += PAGE; update(); });
  byId("csv").addEventListener("click", () => download("csv"));
  byId("report").addEventListener("click", () => download("html"));
  window.addEventListener("resize", update);
}

export function resetResults() {
  byId("cut").value = THRESHOLD;
  most = PAGE;
}

let isWaiting = false;
export function update() {  // at most once a frame, however fast the slider moves
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => { isWaiting = false; draw(); });
}

function draw() {
  const entries = ranked();
  drawUnread();
  byId("results").hidden = !entries.length;
  if (!entries.length) {
    byId("cards").replaceChildren();
    return;
  }
  const cut = limit(), flagged = entries.filter(({ score }) => score >= cut).length;
  byId("plot").replaceChildren(drawHistogram(entries.map(({ score }) => score), cut));
  document.querySelectorAll(".cut-text").forEach((text) => { text.textContent = cut.toFixed(3); });
  byId("cut").setAttribute("aria-valuetext", `${cut.toFixed(3)}, ${flagged} of ${entries.length} flagged`);
  byId("cut").style.setProperty("--at", `${100 * cut}%`);
  byId("live").replaceChildren(make("b", {}, number(flagged)), " flagged, ", make("b", {}, number(entries.length - flagged)), " OK");
  byId("reset").disabled = cut === THRESHOLD;
  byId("moved").hidden = cut === THRESHOLD;
  byId("count-all").textContent = number(entries.length);
  byId("count-bad").textContent = number(flagged);
  byId("count-good").textContent = number(entries.length - flagged);
  const rank = new Map(entries.map((entry, index) => [entry, index])), shown = visible(entries);
  byId("nothing").hidden = shown.length > 0;
  byId("more").hidden = shown.length <= most;
  byId("more").textContent = `Show more (${number(shown.length - most)} left)`;
  byId("cards").style.setProperty("--aspect", aspect(entries));
  arrange(byId("cards"), shown.slice(0, most).map((entry) => cardOf(entry, rank.get(entry), cut, THRESHOLD, enlarge)));
  paintCards(cut, chosen("view"));
  repaintViewer();
}

// Cards share one shape, that of most photos.
export function aspect(entries) {
  const ratios = entries.map(({ width, height }) => width / height).sort((a, b) => a - b);
  return Math.min(2, Math.max(0.5, ratios[ratios.length >> 1]));
}

function drawUnread() {
  const failures = batch.entries.filter(({ state }) => state === "failed");
  byId("unread").hidden = !failures.length;
  byId("unread-rows").replaceChildren(...failures.map((entry) => make(
    "tr", {}, make("td", { className: "path" }, entry.path), make("td", {}, reason(entry)),
  )));
}

async function download(kind) {
  const entries = ranked(), failures = batch.entries.filter(({ state }) => state === "failed");
  const name = `${fileName(batch.detector.name)}-scores`;
  if (kind === "csv") {
    save(new Blob([scoresCsv(entries, limit(), THRESHOLD)], { type: "text/csv;charset=utf-8" }), `${name}.csv`);
    return;
  }
  const button = byId("report"), words = button.textContent;
  button.textContent = "Making the report …";
  try {
    const page = await makeReport({
      detector: batch.detector, entries, failures, limit: limit(), threshold: THRESHOLD,
      aspect: aspect(entries), version, made: new Date(),
    });
    save(new Blob([page], { type: "text/html" }), `${fileName(batch.detector.name)}-report.html`);
  } catch (error) {
    byId("trouble").textContent = `The report could not be made: ${error.message}`;
    byId("trouble").hidden = false;
  } finally {
    button.textContent = words;
  }
}
