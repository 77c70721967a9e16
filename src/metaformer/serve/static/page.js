// Puts the page together: the two steps, and what happens between them.

import { readJson } from "./api.js";
import { announcer, byId, number, plural } from "./elements.js";
import { acceptFiles, keepPageOnDrop } from "./files.js";
import { describeLeft } from "./folders.js";
import { setUpMaking } from "./make_detector.js";
import { chooseProduct, loadProducts, setUpProducts } from "./products.js";
import { ranked, resetResults, setUpResults, update } from "./results.js";
import { loadMarks, setUpReview } from "./review.js";
import { addFiles, batch, clear, keptProduct, restore, retry, setDetector, stop, watchBatch } from "./scoring.js";

const STEPS = ["make", "check"];
const announce = announcer(byId("score-live"));

function showStep(moveFocus) {
  const step = STEPS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "make";
  for (const each of STEPS) {
    byId(each).hidden = each !== step;
    if (each === step) byId(`to-${each}`).setAttribute("aria-current", "step");
    else byId(`to-${each}`).removeAttribute("aria-current");
  }
  if (moveFocus) {
    window.scrollTo(0, 0);
    byId(`${step}-title`).focus({ preventScroll: true });
  }
  update();  // maps are painted only where they can be seen
}

function showTrouble(error) {
  byId("trouble").textContent = error.message;
  byId("trouble").hidden = false;
}

function labelWords() {
  const unused = batch.labels.filter((label) => !batch.entries.some((entry) => entry.label === label)).length;
  return `${plural(batch.labels.length, "label")} read${unused ? `, ${number(unused)} of no photo here` : ""}.`;
}

let wasRunning = false;
function showBatch() {
  const { entries, isRunning, detector } = batch, count = entries.length;
  const over = entries.filter(({ state }) => state === "scored" || state === "failed").length;
  const failed = entries.filter(({ state }) => state === "failed");
  byId("new-state").textContent = [
    detector || !count ? "" : `${plural(count, "photo")} waiting: choose a product.`,
    batch.labels.length ? labelWords() : "",
    batch.masks.length ? `${plural(batch.masks.length, "mask")} taken for the ground truth, not scored.` : "",
    batch.left.length ? `Not used: ${describeLeft(batch.left)}` : "",
  ].filter(Boolean).join(" ");
  byId("batch").hidden = count === 0 && !batch.left.length;
  byId("stop").hidden = !isRunning;
  byId("again").hidden = isRunning || !failed.some(({ canRetry }) => canRetry);
  byId("scoring").hidden = !isRunning;
  Object.assign(byId("score-progress"), { max: Math.max(1, count), value: over });
  const words = `${number(over)} of ${plural(count, "photo")} scored`;
  byId("score-state").textContent = batch.wait ? `${words}. Waiting: ${batch.wait}` : words;
  if (isRunning) {
    announce(words, !wasRunning);
  } else if (wasRunning) {
    const flagged = ranked().filter(({ score }) => score >= 0.5).length;
    announce(`Done: ${flagged} flagged, ${count - failed.length - flagged} OK, ${failed.length} not scored.`, true);
  }
  wasRunning = isRunning;
  update();
}

function useProduct(detector) {
  byId("new-files").disabled = !detector;
  byId("new-drop").classList.toggle("off", !detector);
  byId("chosen-promise").textContent = detector ? `${detector.name}: ${detector.guarantee}` : "Choose a product first.";
  if (detector && detector.id !== batch.detector?.id) resetResults();
  if (detector?.id !== batch.detector?.id) loadMarks(detector).catch(showTrouble);
  setDetector(detector);
}

// The product chosen, as the server has it now.
async function reloadProduct() {
  const detectors = await loadProducts();
  return detectors.find(({ id }) => id === batch.detector.id);
}

async function begin() {
  keepPageOnDrop();
  setUpResults();
  setUpReview(update, reloadProduct);
  watchBatch(showBatch);
  setUpProducts(useProduct);
  setUpMaking(async ({ id }) => {
    await loadProducts();
    // Photos scored with another product stay as they are until the user goes on with this one.
    if (!batch.entries.length) chooseProduct(id);
    byId("made-next").onclick = () => chooseProduct(id);
  });
  acceptFiles(byId("new-drop"), byId("new-files"), addFiles);
  byId("stop").addEventListener("click", () => { stop(); byId("clear").focus(); });
  byId("again").addEventListener("click", () => { retry(); byId("clear").focus(); });
  byId("clear").addEventListener("click", () => { clear(); resetResults(); byId("new-files").focus(); });
  window.addEventListener("hashchange", () => showStep(true));
  window.addEventListener("beforeunload", (event) => { if (batch.isRunning) event.preventDefault(); });
  const { version } = await readJson("health");
  byId("version").textContent = `Metaformer ${version}.`;
  const before = await keptProduct(), detectors = await loadProducts();
  const kept = detectors.find(({ id }) => id === before);
  if (kept && await restore(kept)) {
    await loadMarks(kept);
    chooseProduct(kept.id);
  } else if (detectors.length === 1) chooseProduct(detectors[0].id);
  if (!location.hash && detectors.length) history.replaceState(null, "", "#check");
  showStep(false);
}

begin().catch((error) => { showTrouble(error); showStep(false); });
