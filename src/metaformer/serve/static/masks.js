// Masks dropped with the photos: the ground truth as an outline.

import { endsWith } from "./labels.js";

const MASK_NAMES = ["ground_truth", "mask", "masks"];  // folders, as the command line knows them
const SIDE = 256;  // longer side of a mask when its outline is followed

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
  const canvas = Object.assign(document.createElement("canvas"), { width: w, height: h });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const inside = new Uint8Array(w * h);
  for (const { file } of masks) {
    const bitmap = await createImageBitmap(file);
    context.clearRect(0, 0, w, h);
    context.drawImage(bitmap, 0, 0, w, h);
    bitmap.close();
    const { data } = context.getImageData(0, 0, w, h);
    for (let i = 0; i < inside.length; i++) inside[i] |= data[4 * i] + data[4 * i + 1] + data[4 * i + 2] > 0;
  }
  return follow(inside, w, h).map((points) => points.map(
    (value, i) => Math.round(value * (i % 2 ? height / h : width / w)),
  ));
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
