// The histogram of scores, as in the reports of the command line: bars on either side of the
// threshold in their colours, heights by the square root of the count.

import { makeSvg, number } from "./elements.js";

const BINS = 50;  // 0.5 falls between two bars
const HEIGHT = 120;  // of the highest bar
const BASE = HEIGHT + 14;
const LEAST = 3;  // one photo among many still shows

// The largest of 1, 2, 5, 10, 20, 50 ... that is not above the count.
function roundDown(count) {
  if (count < 1) return 0;
  const power = 10 ** Math.floor(Math.log10(count));
  return Math.max(...[1, 2, 5].map((step) => step * power).filter((value) => value <= count));
}

export function drawHistogram(scores, limit) {
  const counts = new Array(BINS).fill(0), step = 100 / BINS, cut = 100 * limit;
  for (const score of scores) counts[Math.min(BINS - 1, Math.floor(score * BINS))] += 1;
  const top = Math.max(...counts, 1);
  const height = (count) => HEIGHT * Math.sqrt(count / top);
  const flagged = scores.filter((score) => score >= limit).length;
  const svg = makeSvg("svg", {
    height: BASE + 24, role: "img",
    "aria-label": `Histogram of ${scores.length} scores: ${flagged} at or above the threshold ${limit.toFixed(3)}, ${scores.length - flagged} below.`,
  });
  const sides = { below: [0, cut], above: [cut, 100 - cut] };
  svg.append(makeSvg("defs", {}, ...Object.entries(sides).map(([id, [x, width]]) => makeSvg(
    "clipPath", { id }, makeSvg("rect", { x: `${x}%`, y: -20, width: `${width}%`, height: 300 }),
  ))));
  for (const count of new Set([roundDown(top), roundDown(top / 4)])) {
    if (!count) continue;
    const y = BASE - height(count);
    svg.append(makeSvg("line", { class: "grid", x1: 0, x2: "100%", y1: y, y2: y }));
    svg.append(makeSvg("text", { x: 0, y: y - 3 }, number(count)));
  }
  // Drawn twice; two clips, on either side of the threshold, show one colour each.
  for (const id of Object.keys(sides)) {
    const group = makeSvg("g", { class: id, "clip-path": `url(#${id})` });
    counts.forEach((count, bin) => {
      if (!count) return;
      const tall = Math.max(LEAST, height(count));
      group.append(makeSvg("rect", { x: `${bin * step}%`, y: BASE - tall, width: `${0.86 * step}%`, height: tall }));
    });
    svg.append(group);
  }
  svg.append(makeSvg("line", { class: "axis", x1: 0, x2: "100%", y1: BASE, y2: BASE }));
  for (const x of [0, 25, 50, 75, 100]) {
    svg.append(makeSvg("text", { class: "tick", x: `${x}%`, y: BASE + 18 }, String(x / 100)));
  }
  svg.append(makeSvg("line", { class: "cut", x1: `${cut}%`, x2: `${cut}%`, y1: 0, y2: BASE + 4 }));
  return svg;
}
