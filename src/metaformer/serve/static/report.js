// The report: one HTML file with all pictures inside, without scripts. Its elements are made like
// those of the page, so no text of a file name or of the server becomes markup.

import { make, number, pill, plural, shownP, shownRate, shownScore } from "./elements.js";
import { drawHistogram } from "./histogram.js";
import { paint } from "./overlay.js";
import { reason } from "./scoring.js";
import { regionTable } from "./viewer.js";

const PICTURES = 200;  // more would make a file that mail and browsers refuse
const POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

function readAddress(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// Photo, and heat and outlines over it as a picture of their own: a tick in the report hides them.
async function layers(entry, limit) {
  if (!entry.map) return [entry.picture];
  const photo = await readAddress(entry.thumb.blob);
  const image = new Image();
  image.src = photo;
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  paint(canvas, entry.map, { view: "overlay", limit: entry.score >= limit ? limit : null, thick: 2 });
  return [photo, canvas.toDataURL("image/webp", 0.8)];
}

async function card(entry, rank, { limit, threshold }) {
  const pictures = (await layers(entry, limit)).map((src, index) => make("img", { src, alt: index ? "" : entry.name }));
  const info = make(
    "div", { className: "info" },
    make("div", { className: "headline" }, pill(entry.score >= limit), make("span", { className: "score" }, shownScore(entry.score))),
    make("p", { className: "name" }, entry.name),
  );
  if (entry.folder) info.append(make("p", { className: "folder" }, entry.folder));
  info.append(make("p", { className: "facts" }, make("span", {}, `#${rank + 1}`), make("span", { className: "dot" }, `p-value ${shownP(entry.pValue)}`)));
  if (entry.regions.length) {
    info.append(make("details", {}, make("summary", {}, `${plural(entry.regions.length, "region")} at ${threshold.toFixed(3)}`), regionTable(entry)));
  }
  return make("article", { className: "card" }, make("div", { className: "frame" }, ...pictures), info);
}

function panel(title, ...content) {
  return make("section", { className: "panel" }, make("h2", {}, title), ...content);
}

function table(className, heads, lines) {
  const head = make("tr", {}, ...heads.map((word) => make("th", { scope: "col" }, word)));
  const rows = lines.map((line) => make("tr", {}, ...line.map((content) => make("td", {}, content))));
  return make("div", { className: "scroll" }, make("table", { className }, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function settings({ detector, limit, threshold, version, made }) {
  const lines = [
    ["Product", detector.name],
    ["Detector", `${detector.id}, made ${detector.made} from ${plural(detector.support_count, "good photo")}, ${detector.preset} preset`],
    ["False-alarm rate asked", shownRate(detector.false_alarm_rate)],
    ["What its threshold promises", detector.guarantee],
    ["Threshold used here", limit === threshold ? "the detector's own, 0.500" : `${limit.toFixed(3)}, moved by hand from 0.500; the promise does not cover it`],
    ["Report made", `${made.toISOString()} by metaformer-ad ${version}`],
  ];
  return make("table", { className: "settings" }, make("tbody", {}, ...lines.map(
    ([key, value]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, value)),
  )));
}

// Text of the file.
//   what: { detector, entries (ranked), failures, limit, threshold, aspect, version, made }
export async function makeReport(what) {
  const { detector, entries, failures, limit } = what;
  const flagged = entries.filter(({ score }) => score >= limit).length;
  const title = `Inspection report: ${detector.name}`;
  const header = make("header", {}, make("h1", {}, title), make(
    "p", { className: "lead" }, make("b", {}, number(flagged)), " of ", make("b", {}, number(entries.length)),
    ` photos flagged at threshold ${limit.toFixed(3)}.`,
    failures.length ? ` ${plural(failures.length, "file")} could not be scored.` : "",
  ));
  const main = make("main", {}, panel("Scores", make("div", { className: "plot" }, drawHistogram(entries.map(({ score }) => score), limit)), make(
    "p", { className: "note" }, "Heights go with the square root of the number of photos. 0.5 is the detector's own threshold, 0.25 a typical good photo.",
  )));
  main.append(make("p", { className: "panel" }, make("label", { className: "tick-box" }, tickBox(), " Show heat maps and outlines over the photos")));
  const cards = make("div", { className: "cards" });
  for (const [rank, entry] of entries.slice(0, PICTURES).entries()) cards.append(await card(entry, rank, what));
  main.append(make("h2", {}, "Photos, highest score first"));
  if (entries.length > PICTURES) main.append(make("p", { className: "note" }, `The ${PICTURES} highest scores have a picture; all are listed below.`));
  main.append(cards);
  if (failures.length) main.append(panel("Not scored", table("unread", ["File", "Reason"], failures.map((entry) => [entry.path, reason(entry)]))));
  main.append(panel("All scores", table("listing", ["#", "Photo", "Score", "p-value", "Verdict"], entries.map(
    (entry, rank) => [String(rank + 1), entry.path, shownScore(entry.score), shownP(entry.pValue), pill(entry.score >= limit)],
  ))));
  main.append(panel("Settings and provenance", settings(what)));
  const footer = make("footer", { className: "note" }, "This file is complete in itself and needs no network.");
  const style = await (await fetch("page/look.css")).text();
  const head = [
    '<meta charset="utf-8">', '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="color-scheme" content="light dark">', `<meta http-equiv="Content-Security-Policy" content="${POLICY}">`,
    make("title", {}, title).outerHTML, `<style>${style}\n:root { --aspect: ${what.aspect}; }</style>`,
  ];
  const body = [header, main, footer].map((element) => element.outerHTML).join("\n");
  return `<!doctype html>\n<html lang="en">\n<head>\n${head.join("\n")}\n</head>\n<body>\n${body}\n</body>\n</html>\n`;
}

function tickBox() {
  const box = make("input", { type: "checkbox", id: "layers" });
  box.setAttribute("checked", "");  // the property alone is not written into the file
  return box;
}
