// The card of a scored photo: picture, verdict, score.

import { make, pill, shownP, shownScore } from "./elements.js";
import { paintOnScreen } from "./overlay.js";

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
  canvas.hidden = view === "photo" || !entry.map;
  if (canvas.hidden) return;
  paintOnScreen(canvas, entry.map, entry, {
    view,
    limit: entry.score >= limit ? limit : null,
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

// The entry's card, with rank and verdict as they are now.
export function cardOf(entry, rank, limit, threshold, onEnlarge) {
  entry.card ??= makeCard(entry, onEnlarge);
  const isBad = entry.score >= limit;
  const verdict = pill(isBad), old = entry.card.querySelector(".verdict");
  if (old.className !== verdict.className) old.replaceWith(verdict);
  entry.card.querySelector(".rank").textContent = `#${rank + 1}`;
  entry.card.querySelector(".changed").hidden = isBad === (entry.score >= threshold);
  return entry.card;
}

function makeCard(entry, onEnlarge) {
  const image = make("img", { src: entry.thumb?.url ?? entry.picture, alt: "", decoding: "async" });
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
  info.append(facts);
  if (!entry.map) info.append(make("p", { className: "note" }, "This browser cannot show the format; the server drew the overlay at 0.500."));
  const card = make("article", { className: "card", "aria-label": entry.name }, frame, info);
  entryOf.set(card, entry);
  watcher.observe(card);
  return card;
}
