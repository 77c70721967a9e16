// The photos of a batch, sent to the service a few at a time.

import { ApiError, readJson } from "./api.js";
import { fileKey, refusal } from "./files.js";
import { forgetEntries, keepEntry, keptEntries } from "./keep.js";
import { endsWith, isTable, labelOf, readLabels } from "./labels.js";
import { isMask, MaskError, masksOf, traceMasks } from "./masks.js";
import { readMap } from "./overlay.js";

const AT_ONCE = 3;  // one being scored while others are on their way
const UNFIT = [400, 413, 415, 422];  // answers that say something of the photo

// Entries are { key, file, path, name, folder, state, ... }: state is "waiting", "scoring",
// "scored" (then with the answer's fields, `picture` and `map`), or "failed" (with `error` and
// `canRetry`). `file` is null where the browser has not kept it over a reload. `left` holds
// { path, reason } of what is no photo to score and is not used.
export const batch = { detector: null, entries: [], masks: [], labels: [], left: [], isRunning: false, wait: "" };

let onChange = () => {};
let run = null;  // AbortController of the work going on

export function watchBatch(callback) { onChange = callback; }

export async function addFiles(files, left) {
  const tables = files.filter(isTable);
  for (const table of tables) await addTable(table);
  files = files.filter((found) => !tables.includes(found));
  const known = new Map(batch.entries.map((entry) => [entry.key, entry]));
  const isNamed = ({ path }) => batch.labels.some(({ mask }) => endsWith(path, mask));
  const masks = files.filter((found) => isMask(found) || isNamed(found));
  batch.masks.push(...masks);
  for (const found of files) {
    const key = fileKey(found);
    if (masks.includes(found)) continue;
    if (known.has(key)) {
      known.get(key).file ??= found.file;
      continue;
    }
    known.set(key, {});
    addEntry(found, refusal(found));
  }
  for (const { path, reason, isFailure } of left) {
    const key = `${path}|unread`;
    if (!isFailure) leaveOut(path, reason);
    else if (!known.has(key)) addEntry({ file: null, path }, reason, key);
  }
  start();
}

function leaveOut(path, reason) {
  batch.left = [...batch.left.filter((other) => other.path !== path), { path, reason }];
}

function addEntry(found, error, key = fileKey(found)) {
  const slash = found.path.lastIndexOf("/");
  batch.entries.push({
    key, file: found.file, path: found.path, label: labelOf(found.path, batch.labels),
    name: found.path.slice(slash + 1), folder: found.path.slice(0, Math.max(0, slash)),
    ...(error ? { state: "failed", error, canRetry: false } : { state: "waiting" }),
  });
}

// What a table says goes for the photos that are there and for those that follow.
async function addTable(table) {
  try {
    const labels = readLabels(await table.file.text()), isNew = ({ file }) => labels.every((label) => label.file !== file);
    batch.labels = [...labels, ...batch.labels.filter(isNew)];
  } catch (error) {
    addEntry(table, error.message);
  }
  for (const entry of batch.entries) {
    entry.label = labelOf(entry.path, batch.labels) ?? entry.label;
    if (entry.state === "scored") keepEntry(batch.detector.id, entry);
  }
}

// Another product: what is there is scored with it.
export function setDetector(detector) {
  if (detector?.id === batch.detector?.id) return;
  stop();
  batch.detector = detector;
  if (detector) {
    scoreAgain();
  }
  onChange();
}

// The same product, changed: what is there is scored anew.
export function rescore(detector) {
  stop();
  batch.detector = detector;
  scoreAgain();
}

function scoreAgain() {
  for (const entry of batch.entries) {
    if (entry.state === "failed" && !entry.canRetry) continue;
    if (entry.file) entry.state = "waiting";
    else Object.assign(entry, { state: "failed", error: "the browser has not kept this photo; choose it again.", canRetry: false });
  }
  start();
}

// What was there before the page was loaded again, if it is of this product.
export async function restore(detector) {
  const kept = (await keptEntries()).filter(({ detectorId }) => detectorId === detector.id);
  if (!kept.length || batch.entries.length) return false;
  for (const entry of kept) {
    if (entry.state === "scored") entry.map = await readMap(entry.picture.heat);
  }
  batch.detector = detector;
  batch.entries = kept;
  onChange();
  return true;
}

// The product of the photos that are kept; null if there are none.
export const keptProduct = async () => (await keptEntries()).at(-1)?.detectorId ?? null;

export function stop() {
  run?.abort(new DOMException("stopped", "AbortError"));
  run = null;
  batch.isRunning = false;
  for (const entry of batch.entries) {
    if (entry.state === "scoring" || entry.state === "waiting") {
      Object.assign(entry, { state: "failed", error: "stopped before it was scored.", canRetry: true });
    }
  }
  onChange();
}

export function retry() {
  for (const entry of batch.entries) if (entry.state === "failed" && entry.canRetry) entry.state = "waiting";
  start();
}

export function clear() {
  stop();
  batch.entries = [];
  batch.masks = [];
  batch.labels = [];
  batch.left = [];
  forgetEntries();
  onChange();
}

function start() {
  onChange();
  if (run || !batch.detector || !batch.entries.some((entry) => entry.state === "waiting")) return;
  const mine = run = new AbortController();
  batch.isRunning = true;
  const workers = Array.from({ length: AT_ONCE }, () => work(batch.detector, mine.signal));
  Promise.all(workers).then(() => {
    if (run !== mine) return;
    run = null;
    batch.isRunning = false;
    onChange();
  });
  onChange();
}

async function work(detector, signal) {
  for (;;) {
    const entry = signal.aborted ? null : batch.entries.find(({ state }) => state === "waiting");
    if (!entry) return;
    entry.state = "scoring";
    try {
      const found = await score(entry, detector, signal);
      if (signal.aborted) return;
      Object.assign(entry, found, { state: "scored", card: null });
    } catch (error) {
      if (signal.aborted) return;
      fail(entry, error);
    }
    keepEntry(detector.id, entry);
    batch.wait = "";
    onChange();
  }
}

function fail(entry, error) {
  // A photo that was judged unfit stays so; a busy or lost server, or detector, may come back.
  const isUnfit = error instanceof ApiError && UNFIT.includes(error.status);
  Object.assign(entry, { state: "failed", error: error.message, canRetry: !isUnfit });
}

async function score(entry, detector, signal) {
  const body = new FormData();
  body.append("images", entry.file, entry.name);
  const answer = await readJson(`api/detectors/${detector.id}/predict?map=report`, {
    method: "POST", body, signal,
    onWait: (detail) => { batch.wait = detail; onChange(); },
  });
  const [found] = answer.predictions;
  if (found.error !== null) throw new ApiError(422, found.error);
  return {
    ...await trueOutline(entry, found),
    score: found.score, rawScore: found.raw_score, pValue: found.p_value, pValueKind: found.p_value_kind,
    isAnomalous: found.is_anomalous, sha256: found.sha256,
    width: found.width, height: found.height, regions: found.regions,
    picture: found.picture, map: await readMap(found.picture.heat), warnings: found.warnings,
  };
}

// What the masks dropped say of a photo of this size.
async function trueOutline(entry, size) {
  const masks = masksOf(entry, batch.masks);
  if (!masks.length) return {};  // over a reload, what an earlier one said stays
  try {
    const outline = await traceMasks(masks, size);
    return { outline, maskSays: outline.length ? "defective" : "good" };
  } catch (error) {
    if (!(error instanceof MaskError)) throw error;
    leaveOut(error.path, error.message);
    return { outline: [], maskSays: null };
  }
}

// The server's words about one unreadable file, without those about the whole request.
export function reason(entry) {
  const short = entry.error.replace(/^no image could be read\. /, "");
  return short.startsWith(`${entry.name}: `) ? short.slice(entry.name.length + 2) : short;
}
