// Files that the user drops or chooses, and small pictures of them.

import { walk } from "./folders.js";

// Calls onFiles with [{ file, path }], path with the folders it came from, and with what was left
// out of folders, [{ path, reason, isFailure }].
export function acceptFiles(zone, input, onFiles) {
  input.addEventListener("change", () => {
    const chosen = [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
    input.value = "";  // so that the same file can be chosen again
    if (chosen.length) onFiles(chosen, []);
  });
  // It looks like a button; left to the browser, Enter would send the form around it.
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    input.click();
  });
  zone.addEventListener("dragover", (event) => {
    if (!input.disabled) event.dataTransfer.dropEffect = "copy";
    zone.classList.toggle("over", !input.disabled);
  });
  for (const end of ["dragleave", "drop"]) {
    zone.addEventListener(end, () => zone.classList.remove("over"));
  }
  zone.addEventListener("drop", async (event) => {
    if (input.disabled) return;
    const { found, left } = await readDrop(event.dataTransfer);
    if (found.length || left.length) onFiles(found, left);
  });
}

// A photo dropped beside the zone would make the browser leave the page.
export function keepPageOnDrop() {
  for (const kind of ["dragover", "drop"]) {
    window.addEventListener(kind, (event) => event.preventDefault());
  }
}

async function readDrop(transfer) {
  // The items are gone after the first await, so they are all asked for now.
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.()), plain = [...transfer.files];
  if (!entries.length || entries.some((entry) => !entry)) {
    return { found: plain.map((file) => ({ file, path: file.name })), left: [] };
  }
  const found = [], left = [];
  for (const entry of entries) await walk(entry, found, left);
  return { found: found.sort((a, b) => a.path.localeCompare(b.path, "en", { numeric: true })), left };
}

// The same file chosen twice has the same key.
export const fileKey = ({ file, path }) => `${path}|${file.size}|${file.lastModified}`;

// Why a file need not be sent at all; null if the server shall judge.
export function refusal({ file }) {
  if (file.size === 0) return "the file is empty.";
  if (file.type && !file.type.startsWith("image/")) {
    return `not a photo (${file.type}); accepted are PNG, JPEG, BMP, TIFF and WebP.`;
  }
  return null;
}

// A small JPEG of a photo as { blob, url }; null if this browser cannot show its format, which
// says nothing about the server: TIFF is an example. Where the photo is see-through it is black, as for
// the detector.
export async function thumbnail(file, side) {
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { return null; }
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  return blob && { blob, url: URL.createObjectURL(blob) };
}
