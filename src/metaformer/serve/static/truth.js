// What is known of photos: what a reviewer said of them, else a table of labels, else their folder.

// Names of folders, as the command line knows them; tests compare the lists.
export const GOOD_NAMES = ["good", "normal", "ok"];
export const BAD_NAMES = [
  "anomalies", "anomalous", "anomaly", "bad", "defect", "defective", "defects", "ko", "ng", "nok",
];

// Folders that hold test/good/: there the other folders of test/ are kinds of defect.
export function dataSets(entries) {
  const roots = new Set();
  for (const { path } of entries) {
    const parts = path.split("/").slice(0, -1), good = parts.pop();
    if (GOOD_NAMES.includes(good?.toLowerCase()) && parts.at(-1) === "test") roots.add(parts.join("/"));
  }
  return roots;
}

// { truth: "good", "defective" or null, kind }
export function truthOf(entry, roots) {
  if (entry.mark) return { truth: entry.mark.verdict, kind: "" };
  if (entry.label?.truth) return { truth: entry.label.truth, kind: entry.label.kind };
  const parts = entry.path.split("/").slice(0, -1), folder = parts.pop() ?? "";
  if (GOOD_NAMES.includes(folder.toLowerCase())) return { truth: "good", kind: "" };
  if (BAD_NAMES.includes(folder.toLowerCase())) return { truth: "defective", kind: folder };
  if (roots.has(parts.join("/"))) return { truth: "defective", kind: folder };
  return { truth: entry.maskSays ?? null, kind: "" };
}

// Whether the folders of a photo say that it is defective, whatever else was dropped.
export function isAmongDefects({ path }) {
  const folders = path.split("/").slice(0, -1), test = folders.indexOf("test");
  const kind = test < 0 ? undefined : folders[test + 1];
  if (kind !== undefined && !GOOD_NAMES.includes(kind.toLowerCase())) return true;
  return BAD_NAMES.includes(folders.at(-1)?.toLowerCase());
}

// "caught", "missed", "alarm", "passed"; null where the truth is not known.
export function outcomeOf({ score, truth }, limit) {
  if (!truth) return null;
  if (truth === "defective") return score >= limit ? "caught" : "missed";
  return score >= limit ? "alarm" : "passed";
}

export const OUTCOME_WORDS = { caught: "Caught", missed: "Missed", alarm: "False alarm", passed: "Correct" };
