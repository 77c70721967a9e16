// Ranked results: histogram, threshold, cards, and the list of files without a score.

import { arrange, byId, fileName, make, number, plural, save } from "./elements.js";
import { cardOf, paintCards } from "./cards.js";
import { describeLeft } from "./folders.js";
import { drawHistogram } from "./histogram.js";
import { paintRamp } from "./overlay.js";
import { makeReport } from "./report.js";
import { countMarks, describeCut, goodAfterAll, markOf } from "./review.js";
import { batch, reason } from "./scoring.js";
import { scoresCsv } from "./table.js";
import { dataSets, outcomeOf, truthOf } from "./truth.js";
import { enlarge, repaintViewer, setUpViewer } from "./viewer.js";

const THRESHOLD = 0.5;  // the detector's own, for every detector
const PAGE = 60;  // cards at first, and added at a time
const OUTCOMES = ["missed", "alarm", "caught"];  // each has a filter
let most = PAGE;

const limit = () => Number(byId("cut").value);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

// Scored entries, highest first; ties by name, so that the order does not depend on the network.
export function ranked() {
  return batch.entries.filter(({ state }) => state === "scored")
    .sort((a, b) => b.score - a.score || (a.path < b.path ? -1 : 1));
}

function visible(entries) {
  const show = chosen("show"), cut = limit();
  if (OUTCOMES.includes(show)) return entries.filter((entry) => outcomeOf(entry, cut) === show);
  return entries.filter(({ score }) => show === "all" || (show === "bad") === (score >= cut));
}

export function setUpResults() {
  paintRamp(byId("ramp"));
  setUpViewer(() => ({ entries: visible(ranked()), limit: limit(), view: chosen("view") }));
  byId("cut").addEventListener("input", () => describeCut(limit()));
  for (const form of [byId("cutter"), byId("tools")]) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => { most = PAGE; update(); });
  }
  byId("reset").addEventListener("click", () => {
    byId("cut").value = THRESHOLD;
    describeCut(THRESHOLD);
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
  describeCut(THRESHOLD);
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
  const roots = dataSets(batch.entries);
  for (const entry of entries) {
    entry.mark = markOf(entry);
    Object.assign(entry, truthOf(entry, roots));
  }
  byId("plot").replaceChildren(drawHistogram(byTruth(entries), cut));
  drawOutcomes(entries, cut);
  drawReview(entries);
  drawDoubts(entries);
  document.querySelectorAll(".cut-text").forEach((text) => { text.textContent = cut.toFixed(3); });
  byId("cut").setAttribute("aria-valuetext", `${cut.toFixed(3)}, ${flagged} of ${entries.length} flagged`);
  byId("cut").style.setProperty("--at", `${100 * cut}%`);
  byId("live").replaceChildren(make("b", {}, number(flagged)), " flagged, ", make("b", {}, number(entries.length - flagged)), " OK");
  byId("reset").disabled = cut === THRESHOLD;
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

// Rows of the histogram.
function byTruth(entries) {
  const scores = (wanted) => entries.filter(({ truth }) => truth === wanted).map(({ score }) => score);
  const rows = [["truly good", scores("good")], ["truly defective", scores("defective")], ["truth not known", scores(null)]];
  const known = rows.filter(([, found]) => found.length);
  return known.length === 1 && !entries[0].truth ? [["", known[0][1]]] : known;
}

// What the threshold does to photos whose truth is known.
function drawOutcomes(entries, cut) {
  const counts = { caught: 0, missed: 0, alarm: 0, passed: 0 };
  for (const entry of entries) {
    const outcome = outcomeOf(entry, cut);
    if (outcome) counts[outcome] += 1;
  }
  const defective = counts.caught + counts.missed, good = counts.alarm + counts.passed, parts = [];
  if (defective) parts.push(`caught ${number(counts.caught)} of ${number(defective)}`, `missed ${number(counts.missed)}`);
  if (good) parts.push(`false alarms ${number(counts.alarm)} of ${number(good)} good`);
  byId("outcomes").textContent = parts.join(" · ");
  const isKnown = parts.length > 0;
  for (const outcome of OUTCOMES) {
    byId(`show-${outcome}`).hidden = !isKnown;
    byId(`count-${outcome}`).textContent = number(counts[outcome]);
  }
  if (!isKnown && OUTCOMES.includes(chosen("show"))) document.querySelector("input[name=show][value=all]").checked = true;
}

function drawReview(entries) {
  const good = goodAfterAll(entries);
  byId("add-good").hidden = !good.length;
  byId("add-good").textContent = `Add ${plural(good.length, "photo")} to the good ones`;
  byId("good-words").hidden = !good.length;
  byId("good-words").textContent = good.length
    ? `${plural(good.length, "flagged photo")} good after all. Added, the detector learns that such parts are good; all photos are then scored anew.` : "";
  byId("marks-csv").hidden = !countMarks();
  byId("marks-csv").textContent = `Marks of ${plural(countMarks(), "photo")} (CSV)`;
  byId("review").hidden = !good.length && !byId("review-state").textContent;
}

// What the service doubts about single photos.
function drawDoubts(entries) {
  const doubts = entries.flatMap(({ path, warnings = [] }) => warnings.map((reason) => ({ path, reason })));
  byId("doubts").hidden = !doubts.length;
  byId("doubts").textContent = describeLeft(doubts);
}

// Cards share one shape, that of most photos.
export function aspect(entries) {
  const ratios = entries.map(({ width, height }) => width / height).sort((a, b) => a - b);
  return Math.min(2, Math.max(0.5, ratios[ratios.length >> 1]));
}

function drawUnread() {
  const failures = batch.entries.filter(({ state }) => state === "failed");
  byId("unread").hidden = !failures.length && !batch.left.length;
  byId("failed-note").hidden = !failures.length || batch.isRunning;
  const first = failures.slice(0, 3).map((entry) => `${entry.name}: ${reason(entry)}`).join(" ");
  byId("failed-words").textContent = `${plural(failures.length, "photo")} not scored. ${first}`;
  byId("failed-link").hidden = failures.length <= 3;
  const lines = [...failures.map((entry) => ({ path: entry.path, reason: reason(entry) })), ...batch.left];
  byId("unread-rows").replaceChildren(...lines.map(({ path, reason: why }) => make(
    "tr", {}, make("td", { className: "path" }, path), make("td", {}, why),
  )));
}

async function download(kind) {
  const entries = ranked(), failures = batch.entries.filter(({ state }) => state === "failed");
  const name = `${fileName(batch.detector.name)}-scores`;
  if (kind === "csv") {
    save(new Blob([scoresCsv(entries)], { type: "text/csv;charset=utf-8" }), `${name}.csv`);
    return;
  }
  const button = byId("report"), words = button.textContent;
  button.textContent = "Making the report …";
  try {
    save(await makeReport(batch.detector, entries, failures), `${fileName(batch.detector.name)}-report.html`);
  } catch (error) {
    byId("trouble").textContent = `The report could not be made: ${error.message}`;
    byId("trouble").hidden = false;
  } finally {
    button.textContent = words;
  }
}
