// Scores as CSV, with the columns of `metaformer predict` as far as a page knows them.

const COLUMNS = [
  "path", "score", "is_anomalous", "p_value", "raw_score", "regions", "largest_region_box",
  "largest_region_area", "threshold", "flagged",
];

// Quoted where needed. A spreadsheet would run a text that begins like a formula; the mark in front
// makes it show the text.
function cell(value) {
  let text = String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// One line an entry, in the order given. `is_anomalous` is the detector's verdict, `flagged` that at
// the threshold the user chose.
export function scoresCsv(entries, limit, threshold) {
  const lines = entries.map((entry) => {
    const largest = entry.regions.reduce((a, b) => (a && a.area >= b.area ? a : b), null);
    return [
      entry.path, entry.score.toFixed(6), entry.score >= threshold, entry.pValue.toFixed(4),
      Number(entry.rawScore.toPrecision(8)), entry.regions.length, largest ? largest.box.join(" ") : "",
      largest ? largest.area : 0, limit, entry.score >= limit,
    ];
  });
  return [COLUMNS, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}
