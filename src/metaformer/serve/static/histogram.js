// The histogram of scores, as in the reports: a row for each truth that is known, bars on either
// side of the threshold in their colours, heights by the square root of the count.

import { makeSvg, number } from "./elements.js";

const BINS = 50;  // 0.5 falls between two bars
const HEIGHT = 120, ROW_HEIGHT = 70;  // of the highest bar: alone, and with a row for each truth
const ROW_GAP = 28;
const LEAST = 3;  // one photo among many still shows

// The largest of 1, 2, 5, 10, 20, 50 ... that is not above the count.
function roundDown(count) {
  if (count < 1) return 0;
  const power = 10 ** Math.floor(Math.log10(count));
  return Math.max(...[1, 2, 5].map((step) => step * power).filter((value) => value <= count));
}

function countBins(scores) {
  const counts = new Array(BINS).fill(0);
  for (const score of scores) counts[Math.min(BINS - 1, Math.floor(score * BINS))] += 1;
  return counts;
}

// groups: [[title, scores]], one without a title where no truth is known.
export function drawHistogram(groups, limit) {
  const step = 100 / BINS, cut = 100 * limit, isAlone = groups.length === 1 && !groups[0][0];
  const tall = isAlone ? HEIGHT : ROW_HEIGHT, rise = tall + (isAlone ? 14 : ROW_GAP);
  const rows = groups.map(([title, scores]) => [title, countBins(scores)]);
  const top = Math.max(...rows.flatMap(([, counts]) => counts), 1), foot = rise * rows.length;
  const height = (count) => tall * Math.sqrt(count / top);
  const all = groups.flatMap(([, scores]) => scores), flagged = all.filter((score) => score >= limit).length;
  const svg = makeSvg("svg", {
    height: foot + 24, role: "img",
    "aria-label": `Histogram of ${all.length} scores: ${flagged} at or above the threshold ${limit.toFixed(3)}, ${all.length - flagged} below.`,
  });
  const sides = { below: [0, cut], above: [cut, 100 - cut] };
  svg.append(makeSvg("defs", {}, ...Object.entries(sides).map(([id, [x, width]]) => makeSvg(
    "clipPath", { id }, makeSvg("rect", { x: `${x}%`, y: -20, width: `${width}%`, height: 400 }),
  ))));
  rows.forEach(([title, counts], index) => {
    const base = rise * (index + 1), own = Math.max(...counts);
    const nice = isAlone ? [roundDown(own), roundDown(own / 4)] : [roundDown(own)];
    for (const count of new Set(nice)) {
      if (!count) continue;
      const y = base - height(count);
      svg.append(makeSvg("line", { class: "grid", x1: 0, x2: "100%", y1: y, y2: y }));
      svg.append(makeSvg("text", { x: 0, y: y - 3 }, number(count)));
    }
    // Drawn twice; two clips, on either side of the threshold, show one colour each.
    for (const id of Object.keys(sides)) {
      const group = makeSvg("g", { class: id, "clip-path": `url(#${id})` });
      counts.forEach((count, bin) => {
        if (!count) return;
        const high = Math.max(LEAST, height(count));
        group.append(makeSvg("rect", { x: `${bin * step}%`, y: base - high, width: `${0.86 * step}%`, height: high }));
      });
      svg.append(group);
    }
    svg.append(makeSvg("line", { class: "axis", x1: 0, x2: "100%", y1: base, y2: base }));
    if (title) svg.append(makeSvg("text", { class: "row-title", x: "100%", y: base - tall - 6 }, title));
  });
  for (const x of [0, 25, 50, 75, 100]) {
    svg.append(makeSvg("text", { class: "tick", x: `${x}%`, y: foot + 18 }, String(x / 100)));
  }
  svg.append(makeSvg("line", { class: "cut", x1: `${cut}%`, x2: `${cut}%`, y1: 0, y2: foot + 4 }));
  return svg;
}
