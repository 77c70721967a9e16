// The enlarged view: one photo over the whole window, with its regions.

import { byId, make, number, pill, plural, shownP, shownScore } from "./elements.js";
import { paintEntry } from "./cards.js";
import { makeZoom } from "./report_zoom.js";

let context = null;  // () => { entries in their order, limit, view }
let viewed = null;
let address = null;  // of the photo at full size
let isOverlayOn = true;
let zoom = null;

export function setUpViewer(readContext) {
  context = readContext;
  const dialog = byId("viewer");
  zoom = makeZoom(byId("stage"), byId("layer"), () => repaintViewer());
  byId("zoom-in").addEventListener("click", () => zoom.by(1.5));
  byId("zoom-out").addEventListener("click", () => zoom.by(1 / 1.5));
  byId("zoom-reset").addEventListener("click", () => zoom.reset());
  // What the browser cannot show, TIFF for example, is shown as the server sent it back.
  byId("viewer-image").addEventListener("error", () => { if (viewed) byId("viewer-image").src = viewed.picture.photo; });
  byId("close").addEventListener("click", () => dialog.close());
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("viewer-overlay").addEventListener("click", () => {
    isOverlayOn = !isOverlayOn;
    repaintViewer();
  });
  dialog.addEventListener("close", () => {
    const card = viewed?.card;
    viewed = null;
    forget();
    // The browser gives the focus back to where it was; the card seen last is more use.
    card?.isConnected && card.querySelector(".frame").focus();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
    if (event.key === "+") zoom.by(1.5);
    if (event.key === "-") zoom.by(1 / 1.5);
    if (event.key === "0") zoom.reset();
  });
  window.addEventListener("resize", () => repaintViewer());
}

function forget() {
  if (address) URL.revokeObjectURL(address);
  address = null;
  byId("viewer-image").removeAttribute("src");
}

export function enlarge(entry) {
  forget();
  viewed = entry;
  const { limit } = context(), isBad = entry.score >= limit;
  address = entry.file ? URL.createObjectURL(entry.file) : null;
  byId("viewer-image").src = address ?? entry.picture.photo;
  byId("viewer-image").alt = entry.name;
  byId("viewer-name").textContent = entry.name;
  byId("viewer-name").title = entry.path;
  byId("viewer-score").textContent = shownScore(entry.score);
  byId("viewer-pill").replaceChildren(pill(isBad));
  byId("viewer-facts").textContent = `${entry.width} × ${entry.height} pixels, p-value ${shownP(entry.pValue)}. `
    + (entry.regions.length
      ? `${plural(entry.regions.length, "region")} at the detector's threshold, 0.500:`
      : "No region at the detector's threshold, 0.500.");
  byId("viewer-regions").replaceChildren(...(entry.regions.length ? [regionTable(entry)] : []));
  showBeside(entry);
  const dialog = byId("viewer");
  if (!dialog.open) {
    isOverlayOn = true;
    dialog.showModal();
    zoom.reset();
  } else {
    zoom.reset();
    byId("viewer-live").textContent = `${entry.name}, ${isBad ? "flagged" : "OK"}, score ${shownScore(entry.score)}`;
  }
  for (const [id, step] of [["previous", -1], ["next", 1]]) setEnabled(byId(id), neighbour(step) !== undefined);
  repaintViewer();
}

// The nearest good photo and the regions at full sharpness.
function showBeside({ picture: { good, crops }, file }) {
  byId("good").hidden = !good;
  if (good) byId("good-image").src = good.photo; else byId("good-image").removeAttribute("src");
  byId("good-image").alt = good ? `Good photo ${good.name}` : "";
  byId("good-photo-name").textContent = good?.name ?? "";
  byId("viewer-crops").replaceChildren(...crops.map((src, index) => make(
    "figure", {}, make("img", { src, alt: `Region ${index + 1}, original pixels` }), make("figcaption", {}, String(index + 1)),
  )));
  byId("viewer-link").hidden = !file;
  if (address) byId("viewer-link").href = address;
  byId("beside").hidden = !good && !crops.length && !file;
}

// A button that holds the focus and is disabled would drop it; the other one takes it.
function setEnabled(button, isEnabled) {
  const hadFocus = document.activeElement === button;
  button.disabled = !isEnabled;
  if (hadFocus && !isEnabled) byId("close").focus();
}

export function regionTable(entry) {
  const head = ["#", "left, top", "size", "area", "peak"].map((word) => make("th", { scope: "col" }, word));
  const rows = entry.regions.map(({ box: [x, y, width, height], area, peak }, index) => make(
    "tr", {}, ...[index + 1, `${x}, ${y}`, `${width} × ${height}`, number(area), shownScore(peak)]
      .map((content) => make("td", {}, String(content))),
  ));
  return make(
    "table", { className: "regions" }, make("caption", {}, "In pixels of the photo"),
    make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows),
  );
}

export function repaintViewer() {
  if (!viewed) return;
  const { limit, view } = context();
  byId("viewer-overlay").setAttribute("aria-pressed", isOverlayOn);
  const shown = view === "photo" ? "overlay" : view;  // the view's own button hides it
  paintEntry(byId("viewer-canvas"), viewed, { limit, view: isOverlayOn ? shown : "photo", isLarge: true });
}

function neighbour(step) {
  const { entries } = context(), at = entries.indexOf(viewed);
  return at < 0 ? undefined : entries[at + step];
}

function move(step) {
  const entry = neighbour(step);
  if (entry) enlarge(entry);
}
