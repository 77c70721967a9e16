// Heat and outlines of the photos, drawn by the script that the reports use too.

import { HEAT } from "./heat.js";
import { paint, paintAt, readMap as readLevels } from "./report_maps.js";

const OPACITY = 0.6;

// The levels of a map given as an address.
export async function readMap(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return readLevels(image);
}

// Paint at the resolution of the screen a canvas that lies over a photo of this size.
//   view     "overlay", or "heat" for colours that hide the photo
//   limit    score to outline at; null for no outline
//   truth    polygons of the true defects, in pixels of the photo
//   regions  numbered in the picture: [{ box: [x, y, width, height] }] in pixels of the photo
export function paintOnScreen(canvas, map, { width, height }, { view, limit, regions = [], truth = [] }) {
  paint(canvas, map, [width, height], {
    colours: HEAT,
    opacity: view === "heat" ? 1 : OPACITY,
    isOpaque: view === "heat",
    limit: limit === null ? null : 255 * limit,
    truth,
    tags: regions.map(({ box }, index) => [index + 1, ...box]),
  });
}

// The colours from normal to defect, without transparency.
export function paintRamp(canvas) {
  const levels = new Int16Array(258 * 3).fill(-1);
  for (let level = 0; level < 256; level++) levels[259 + level] = level;
  paintAt(canvas, { width: 256, height: 1, levels }, {
    colours: HEAT, opacity: 1, isOpaque: true, limit: null, tags: [], truth: [], scale: 1, thick: 1,
  });
}
