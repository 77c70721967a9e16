// A table of labels dropped with the photos: file,label and, if there are masks, mask, as
// `metaformer predict --labels` reads it.

import { BAD_NAMES, GOOD_NAMES } from "./truth.js";

const GOOD_LABELS = [...GOOD_NAMES, "0", "false", "negative", "pass"];
const PLAIN_BAD_LABELS = [...BAD_NAMES, "1", "fail", "positive", "true"];  // they name no kind of defect

export const isTable = ({ file }) => /\.csv$/i.test(file.name);

const partsOf = (path) => path.split(/[\\/]/).filter((part) => part && part !== ".");

// Whether a path is `end` or ends with it, folder by folder.
export function endsWith(path, end) {
  const parts = partsOf(path), last = partsOf(end);
  return last.length > 0 && last.every((part, i) => part === parts[parts.length - last.length + i]);
}

// The lines as [{ file, truth, kind, mask }]; truth is null where the mask alone tells.
export function readLabels(text) {
  const [first] = text.split("\n", 1), count = (sign) => first.split(sign).length;
  const sign = count(";") > count(",") ? ";" : ",", lines = [[]], labels = [];
  for (const [, cell, end] of text.matchAll(new RegExp(`("(?:[^"]|"")*"|[^${sign}\\r\\n]*)(${sign}|\\r?\\n|$)`, "g"))) {
    lines.at(-1).push(cell.startsWith('"') ? cell.slice(1, -1).replaceAll('""', '"').trim() : cell.trim());
    if (end !== sign) lines.push([]);
  }
  let columns = [0, 1, 2];
  lines.forEach((cells, index) => {
    const words = cells.map((cell) => cell.toLowerCase());
    if (index === 0 && (words.includes("label") || words.includes("mask"))) {
      const named = ["file", "path", "name"].map((word) => words.indexOf(word)).find((at) => at >= 0) ?? 0;
      columns = [named, words.indexOf("label"), words.indexOf("mask")];
    } else if (cells.some(Boolean)) {
      const [file, label, mask] = columns.map((at) => cells[at] ?? "");
      if (!file || !(label || mask)) {
        throw new Error(`not a table of labels: line ${index + 1} is “${cells.join(sign)}”; accepted is file,label or file,label,mask.`);
      }
      labels.push({ file, mask, ...meaning(label) });
    }
  });
  if (!labels.length) throw new Error("no labels in it. Each line holds file,label or file,label,mask.");
  return labels;
}

function meaning(label) {
  const word = label.toLowerCase();
  if (GOOD_LABELS.includes(word)) return { truth: "good", kind: "" };
  return { truth: label ? "defective" : null, kind: PLAIN_BAD_LABELS.includes(word) ? "" : label };
}

// The line that names most of a photo's path; null if none does.
export const labelOf = (path, labels) => labels.reduce((best, label) => (
  endsWith(path, label.file) && partsOf(label.file).length > partsOf(best?.file ?? "").length ? label : best
), null);
