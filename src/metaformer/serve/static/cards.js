// The card of a scored photo: picture, verdict, score, what is true of it.

import { make, pill, shownP, shownScore } from "./elements.js";
import { paintOnScreen } from "./overlay.js";
import { setMark } from "./review.js";
import { BAD_NAMES, OUTCOME_WORDS, outcomeOf } from "./truth.js";

const entryOf = new WeakMap();  // card -> entry
const near = new Set();  // cards on the screen or close to it; only those are painted
let look = { limit: 0.5, view: "overlay" };

const watcher = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (isIntersecting) near.add(target); else release(target);
    if (isIntersecting) paintCard(target);
  }
}, { rootMargin: "400px" });

function release(card) {
  near.delete(card);
  const canvas = card.querySelector("canvas");
  canvas.width = canvas.height = 0;
}

// The canvas of a card or of the enlarged view, as the threshold and the choice of view stand.
export function paintEntry(canvas, entry, { limit, view, isLarge = false }) {
  canvas.hidden = view === "photo";
  if (canvas.hidden) return;
  paintOnScreen(canvas, entry.map, entry, {
    view,
    limit: entry.score >= limit ? limit : null,
    truth: entry.truth === "defective" ? entry.outline : [],
    regions: isLarge && entry.score >= limit ? entry.regions : [],
  });
}

function paintCard(card) {
  paintEntry(card.querySelector("canvas"), entryOf.get(card), look);
}

export function paintCards(limit, view) {
  look = { limit, view };
  for (const card of near) if (card.isConnected) paintCard(card); else release(card);
}

// Paper shows all cards at once, also those far from the screen. A canvas that has been painted is
// left alone: Chromium prints one that is painted again while printing without its transparency.
window.addEventListener("beforeprint", () => {
  for (const card of document.querySelectorAll(".card")) if (!card.querySelector("canvas").width) paintCard(card);
});
window.addEventListener("afterprint", () => {
  for (const card of document.querySelectorAll(".card")) if (!near.has(card)) release(card);
});

// The entry's card, with rank, verdict and truth as they are now.
export function cardOf(entry, rank, limit, threshold, onEnlarge) {
  entry.card ??= makeCard(entry, onEnlarge);
  const { card } = entry, isBad = entry.score >= limit;
  const verdict = pill(isBad), old = card.querySelector(".verdict");
  if (old.className !== verdict.className) old.replaceWith(verdict);
  card.querySelector(".rank").textContent = `#${rank + 1}`;
  card.querySelector(".changed").hidden = isBad === (entry.score >= threshold);
  showTruth(card, entry, limit);
  return card;
}

function showTruth(card, entry, limit) {
  const outcome = outcomeOf(entry, limit), line = card.querySelector(".truth");
  line.hidden = !outcome;
  if (outcome) {
    const isRight = outcome === "caught" || outcome === "passed";
    line.replaceChildren(
      make("b", { className: `outcome ${isRight ? "right" : "wrong"}` }, OUTCOME_WORDS[outcome]),
      ` truly ${entry.truth}${entry.kind && !BAD_NAMES.includes(entry.kind.toLowerCase()) ? `: ${entry.kind}` : ""}${entry.mark ? ", said by you" : ""}`,
    );
  }
  for (const button of card.querySelectorAll(".mark")) {
    button.setAttribute("aria-pressed", entry.mark?.verdict === button.dataset.verdict);
    const isBad = entry.score >= limit;
    if (button.dataset.verdict === "good") button.textContent = isBad ? "Good after all" : "Good";
    else button.textContent = isBad ? "Defective" : "Missed defect";
  }
  const note = card.querySelector(".mark-note");
  note.hidden = !entry.mark;
  if (document.activeElement !== note) note.value = entry.mark?.note ?? "";
}

function makeCard(entry, onEnlarge) {
  const image = make("img", { src: entry.picture.photo, alt: "" });
  const frame = make(
    "button", { type: "button", className: "frame", "aria-label": `Enlarge ${entry.name}` },
    image, make("canvas", { width: 0, height: 0, "aria-hidden": "true" }),
  );
  frame.addEventListener("click", () => onEnlarge(entry));
  const score = make("span", { className: "score", title: "score; 0.500 is the detector's threshold" }, shownScore(entry.score));
  const facts = make(
    "p", { className: "facts" }, make("span", { className: "rank" }),
    make("span", { className: "dot", title: "share of good photos expected to score this high" }, `p-value ${shownP(entry.pValue)}`),
    make("span", { className: "dot changed", hidden: true }, "moved by you"),
  );
  const info = make("div", { className: "info" }, make("div", { className: "headline" }, pill(false), score));
  info.append(make("p", { className: "name", title: entry.path }, entry.name));
  if (entry.folder) info.append(make("p", { className: "folder", title: entry.path }, entry.folder));
  info.append(facts, make("p", { className: "truth", hidden: true }), marksOf(entry));
  const card = make("article", { className: "card", "aria-label": entry.name }, frame, info);
  entryOf.set(card, entry);
  watcher.observe(card);
  return card;
}

// What a reviewer says of the photo; a second click takes it back.
function marksOf(entry) {
  const note = make("input", {
    type: "text", className: "mark-note", maxLength: 2000, placeholder: "Note", "aria-label": `Note on ${entry.name}`, hidden: true,
  });
  const buttons = ["good", "defective"].map((verdict) => {
    const button = make("button", { type: "button", className: "mark" });
    button.dataset.verdict = verdict;
    button.addEventListener("click", () => setMark(entry, entry.mark?.verdict === verdict ? null : verdict, note.value));
    return button;
  });
  note.addEventListener("change", () => { if (entry.mark) setMark(entry, entry.mark.verdict, note.value); });
  return make("div", { className: "marks" }, make("div", { className: "row" }, ...buttons), note);
}
