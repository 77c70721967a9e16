// Scores as CSV, with the columns of `metaformer predict`.

const COLUMNS = [
  "path", "score", "is_anomalous", "p_value", "p_value_kind", "raw_score", "regions",
  "largest_region_box", "largest_region_area", "map", "size",
  "mtime_ns", "truth",
];

// Quoted where needed. A spreadsheet would run a text that begins like a formula; the mark in front
// makes it show the text.
function cell(value) {
  let text = String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// One line an entry, in the order given.
export function scoresCsv(entries) {
  const lines = entries.map((entry) => {
    const largest = entry.regions.reduce((a, b) => (a && a.area >= b.area ? a : b), null);
    return [
      entry.path, entry.score.toFixed(6), entry.isAnomalous, entry.pValue.toFixed(4), entry.pValueKind,
      Number(entry.rawScore.toPrecision(8)), entry.regions.length, largest ? largest.box.join(" ") : "",
      largest ? largest.area : 0, "", entry.file?.size ?? 0, BigInt(entry.file?.lastModified ?? 0) * 1000000n,
      entry.truth === "defective" ? entry.kind || "defect" : entry.truth ?? "",
    ];
  });
  return [COLUMNS, ...lines].map((line) => `${line.map(cell).join(",")}\n`).join("");
}
