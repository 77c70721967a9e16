// What a reviewer does with the results: marks, adding good photos, keeping a moved threshold.

import { followJob, readJson, request } from "./api.js";
import { byId, fileName, plural, save, shownRate } from "./elements.js";
import { batch, rescore } from "./scoring.js";

const THRESHOLD = 0.5;
const SETTLED = 250;  // milliseconds without a move of the slider
let marks = new Map();  // digest of a photo -> its mark
let marked = null;  // id of the detector whose marks these are
let onChange = () => {};
let isBusy = false;

export function setUpReview(callback, reloadProduct) {
  onChange = callback;
  byId("add-good").addEventListener("click", () => work(() => addGood(reloadProduct)));
  byId("keep-cut").addEventListener("click", () => work(() => keepThreshold(reloadProduct)));
  byId("marks-csv").addEventListener("click", () => work(exportMarks));
}

// Shows that something is going on, and what went wrong, beside the buttons.
async function work(task) {
  if (isBusy) return;
  isBusy = true;
  say("");
  try {
    await task();
  } catch (error) {
    say(error.message, true);
  } finally {
    isBusy = false;
    onChange();
  }
}

function say(text, isWrong = false) {
  byId("review-state").textContent = text;
  byId("review-state").className = isWrong ? "wrong" : "note";
  byId("review").hidden = false;
}

// Marks of photos scored with this product, from this and earlier checks.
export async function loadMarks(detector) {
  marked = detector?.id ?? null;
  marks = new Map();
  if (detector) {
    const found = await readJson(`api/detectors/${detector.id}/marks`);
    if (marked === detector.id) marks = new Map(found.marks.map((mark) => [mark.sha256, mark]));
  }
  onChange();
}

export const markOf = (entry) => marks.get(entry.sha256) ?? null;

// A verdict of null takes the mark back.
export function setMark(entry, verdict, note) {
  const address = `api/detectors/${marked}/marks/${entry.sha256}`;
  return work(async () => {
    if (verdict === null) {
      await request(address, { method: "DELETE" });
      marks.delete(entry.sha256);
    } else {
      const body = JSON.stringify({ name: entry.path, verdict, note, score: entry.score });
      const mark = await readJson(address, { method: "PUT", body: new Blob([body], { type: "application/json" }) });
      marks.set(entry.sha256, mark);
    }
  });
}

// Flagged by the detector, and good after all.
export const goodAfterAll = (entries) => entries.filter(
  (entry) => entry.isAnomalous && entry.mark?.verdict === "good",
);

async function addGood(reloadProduct) {
  const chosen = goodAfterAll(batch.entries.filter(({ state }) => state === "scored"));
  const there = chosen.filter(({ file }) => file);
  if (!there.length) throw new Error("The browser has not kept these photos. Choose them again first.");
  const form = new FormData();
  for (const { file, name } of there) form.append("images", file, name);
  say("Sending photos …");
  const { job } = await readJson(`api/detectors/${batch.detector.id}/extend`, { method: "POST", body: form, once: true, onWait: say });
  const over = await followJob(job, ({ state, done, total }) => say(
    state === "waiting" ? "Waiting for another detector to be finished …"
      : total ? `Learning the product anew: step ${done} of ${total}` : "Learning the product anew …",
  ));
  if (over.state === "failed") throw new Error(over.error ?? "The photos could not be added.");
  rescore(await reloadProduct());
  const { support_count: count, guarantee } = over.detector;
  const doubts = over.warnings.filter((text) => text !== guarantee);  // the last repeats it where it is none
  say([`Added: the detector knows ${plural(count, "good photo")} now.`, ...doubts, guarantee].join(" "));
}

// ---- A moved threshold --------------------------------------------------------------------

let settling = 0;

// Says what the threshold chosen comes to, when the slider has come to rest.
export function describeCut(cut) {
  clearTimeout(settling);
  byId("moved").hidden = cut === THRESHOLD;
  byId("keep-cut").disabled = true;
  if (cut === THRESHOLD || !batch.detector) return;
  byId("moved-words").textContent = "Moved by you: what the detector promises holds for 0.500 only.";
  if (!(cut > 0 && cut < 1)) return;
  settling = setTimeout(async () => {
    const rate = await readJson(`api/detectors/${batch.detector.id}/rate?score=${cut}`).catch(() => null);
    if (!rate || Number(byId("cut").value) !== cut) return;
    byId("moved-words").textContent = `Moved by you. Kept, this is a false-alarm rate of ${shownRate(rate.false_alarm_rate)}.`;
    byId("keep-cut").disabled = false;
  }, SETTLED);
}

async function keepThreshold(reloadProduct) {
  const body = new Blob([JSON.stringify({ score: Number(byId("cut").value) })], { type: "application/json" });
  const kept = await readJson(`api/detectors/${batch.detector.id}`, { method: "PATCH", body, once: true });
  byId("cut").value = THRESHOLD;
  describeCut(THRESHOLD);
  rescore(await reloadProduct());
  say(`Kept: a false-alarm rate of ${shownRate(kept.false_alarm_rate)}. ${kept.guarantee}`);
}

async function exportMarks() {
  const answer = await request(`api/detectors/${marked}/marks.csv`);
  save(await answer.blob(), `${fileName(batch.detector.name)}-marks.csv`);
}

export const countMarks = () => marks.size;
