// Folders that are dropped: the files inside, and what is left out of them with its reason.

const NOT_PHOTOS = /^(\..*|thumbs\.db|desktop\.ini)$/i;  // what systems leave in folders

// Folders that the command line passes over, too; tests compare the lists.
const BINS = {
  "#recycle": "a recycle bin",
  "#snapshot": "snapshots of a network drive",
  "$recycle.bin": "a recycle bin",
  "@eadir": "thumbnails of a network drive",
  "@recently-snapshot": "snapshots of a network drive",
  "@recycle": "a recycle bin",
  "@tmp": "a network drive's own folder",
  "__macosx": "a folder of the system",
  "lost+found": "a folder of the system",
  "recycler": "a recycle bin",
  "system volume information": "a folder of the system",
};
const RUN_FILE = "run.json";
const OUTPUTS = ["maps", "scores", "scores.csv", "failures.csv"];
const WRITTEN = [RUN_FILE, "report.html", ...OUTPUTS];
const RESULTS = "results of this program; passed over.";

// Adds what is inside to `found`, as { file, path }, and what is left out to `left`, as
// { path, reason, isFailure }. Folders of masks are walked into: those who ask know what masks are.
export async function walk(entry, found, left) {
  const path = entry.fullPath.slice(1);
  const leaveOut = (reason, isFailure = false) => left.push({ path, reason, isFailure });
  if (entry.isFile) {
    if (NOT_PHOTOS.test(entry.name)) return;
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file) found.push({ file, path });
    else leaveOut("the browser cannot read the file. Change its permissions, or drop it again if it was moved.", true);
    return;
  }
  const { entries, isWhole } = await list(entry);
  if (!isWhole) leaveOut("the browser cannot list all of the folder. Change its permissions, or drop it again if it was moved.", true);
  const names = entries.map(({ name }) => name);
  const isResults = names.includes(RUN_FILE) && OUTPUTS.some((name) => names.includes(name));
  // What was dropped itself was meant, with photos beside the results perhaps.
  if (isResults && path.includes("/")) {
    leaveOut(RESULTS);
    return;
  }
  for (const inner of entries) {
    const why = isResults && WRITTEN.includes(inner.name) ? RESULTS : whyPassedOver(inner);
    if (why) left.push({ path: inner.fullPath.slice(1), reason: why, isFailure: false });
    else await walk(inner, found, left);
  }
}

function whyPassedOver({ isFile, name }) {
  if (isFile) return "";
  const why = BINS[name.toLowerCase()] ?? (name.startsWith(".") ? "a hidden folder" : "");
  return why && `${why}; passed over.`;
}

// All entries of a folder, or those before the browser failed.
async function list(folder) {
  const reader = folder.createReader(), entries = [];
  for (;;) {  // a hundred at a time, an empty list at the end
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve(null)));
    if (!some?.length) return { entries, isWhole: some !== null };
    entries.push(...some);
  }
}

// What is left out in a few words: some paths of each reason.
export function describeLeft(left, shown = 3) {
  const byReason = new Map();
  for (const { path, reason } of left) byReason.set(reason, [...(byReason.get(reason) ?? []), path]);
  return [...byReason].map(([reason, paths]) => {
    const more = paths.length > shown ? ` and ${paths.length - shown} more` : "";
    return `${paths.slice(0, shown).join(", ")}${more}: ${reason}`;
  }).join(" ");
}
