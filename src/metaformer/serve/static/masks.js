// Masks dropped with the photos: the ground truth as an outline.

import { endsWith } from "./labels.js";

// Folders, as the command line knows them; tests compare the lists.
const MASK_NAMES = ["ground-truth", "ground_truth", "groundtruth", "mask", "masks"];
const SIDE = 256;  // longer side of a mask when its outline is followed
const ROWS = 256;  // of a mask looked at at once: all of a large one would fill a phone
const MARKED = 127;  // brighter is defective

// A mask that this browser cannot show.
export class MaskError extends Error {
  constructor(path) {
    super("this browser cannot show the mask, so what it marks is not known. Convert it to PNG.");
    this.path = path;
  }
}

const stemOf = (path) => path.slice(path.lastIndexOf("/") + 1).replace(/\.[^.]+$/, "");

// A mask by its name (x_mask.png) or its folder, whatever else was dropped.
export function isMask({ path }) {
  const folders = path.split("/").slice(0, -1);
  return /_mask$/i.test(stemOf(path)) || folders.some((name) => MASK_NAMES.includes(name.toLowerCase()));
}

// What photo and mask have in common: the stem, and the folder (of a kind of defect) they are in.
const folderOf = (path) => path.split("/").slice(0, -1).at(-1) ?? "";

// The masks of a photo among those dropped: the one that a table names, else those beside it, or in
// a folder of masks of its kind.
export function masksOf({ path, label }, masks) {
  if (label?.mask) return masks.filter((mask) => endsWith(mask.path, label.mask));
  const stem = stemOf(path), folder = path.slice(0, path.lastIndexOf("/") + 1);
  return masks.filter((mask) => {
    const maskFolder = mask.path.slice(0, mask.path.lastIndexOf("/") + 1);
    if (stemOf(mask.path).replace(/_mask$/i, "") !== stem) return false;
    const kind = folderOf(mask.path);
    return maskFolder === folder || kind === folderOf(path) || MASK_NAMES.includes(kind.toLowerCase());
  });
}

// Outlines of masks, united, as polygons [x, y, x, y ...] in pixels of a photo of this size; an empty
// list if they mark nothing.
export async function traceMasks(masks, { width, height }) {
  const scale = Math.min(1, SIDE / Math.max(width, height));
  const w = Math.max(1, Math.round(width * scale)), h = Math.max(1, Math.round(height * scale));
  const inside = new Uint8Array(w * h);
  for (const mask of masks) {
    const values = await brightest(mask, w, h);
    // Where no value gets that far they are numbers of classes, in a format that keeps them exactly.
    const isOfClasses = values.every((value) => value <= MARKED) && !/\.jpe?g$/i.test(mask.path);
    const limit = isOfClasses ? 0 : MARKED;
    for (let i = 0; i < inside.length; i++) inside[i] |= values[i] > limit;
  }
  return follow(inside, w, h).map((points) => points.map(
    (value, i) => Math.round(value * (i % 2 ? height / h : width / w)),
  ));
}

// The highest value of any channel in each cell of a grid of w x h, so that a thin line is not lost.
async function brightest({ file, path }, w, h) {
  let bitmap;
  try { bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }); } catch { throw new MaskError(path); }
  const width = Math.max(w, bitmap.width), height = Math.max(h, bitmap.height);
  const canvas = Object.assign(document.createElement("canvas"), { width, height: Math.min(ROWS, height) });
  const context = canvas.getContext("2d", { willReadFrequently: true }), values = new Uint8Array(w * h);
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#000";  // under what is see-through, as for the command line
  for (let top = 0; top < height; top += ROWS) {
    const rows = Math.min(ROWS, height - top);
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top, width, height);
    const { data } = context.getImageData(0, 0, width, rows);
    for (let y = 0, i = 0; y < rows; y++) {
      const row = Math.floor(((top + y) * h) / height) * w;
      for (let x = 0; x < width; x++, i += 4) {
        const cell = row + Math.floor((x * w) / width);
        values[cell] = Math.max(values[cell], data[i], data[i + 1], data[i + 2]);
      }
    }
  }
  bitmap.close();
  return values;
}

// Polygons along the edges between pixels inside and outside, the inside always on the right.
export function follow(inside, width, height) {
  const isIn = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x] > 0;
  const next = new Map();  // corner -> corners that edges lead to
  const add = (x1, y1, x2, y2) => {
    const from = y1 * (width + 1) + x1;
    next.set(from, [...(next.get(from) ?? []), [x2, y2]]);
  };
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!isIn(x, y)) continue;
      if (!isIn(x, y - 1)) add(x, y, x + 1, y);
      if (!isIn(x + 1, y)) add(x + 1, y, x + 1, y + 1);
      if (!isIn(x, y + 1)) add(x + 1, y + 1, x, y + 1);
      if (!isIn(x - 1, y)) add(x, y + 1, x, y);
    }
  }
  const polygons = [];
  for (const start of next.keys()) {
    while (next.get(start)?.length) {
      const points = [];
      let at = start, x = start % (width + 1), y = Math.floor(start / (width + 1)), before = null;
      do {
        const [x2, y2] = next.get(at).pop();
        const direction = `${x2 - x},${y2 - y}`;
        if (direction !== before) points.push(x, y);  // corners alone
        [x, y, before, at] = [x2, y2, direction, y2 * (width + 1) + x2];
      } while (at !== start);
      polygons.push(points);
    }
  }
  return polygons;
}
