// From the 8-bit map of an answer to heat and outlines on a canvas.

import { HEAT } from "./heat.js";

const MAP_SIDE = 320;  // a map is smooth, and hundreds of them are held
const OPACITY = 0.6;
const OUTLINE = "rgb(0 229 255)", HALO = "rgb(0 0 0 / 75%)";

// Which sides of a cell the outline joins, by its corners at or above the limit (8 top left, 4 top
// right, 2 bottom right, 1 bottom left). Corners that touch count as joined, as for the detector.
const JOINS = ["", "lb", "br", "lr", "tr", "tl br", "tb", "tl", "tl", "tb", "tr lb", "tr", "lr", "br", "lb", ""]
  .map((pairs) => pairs.split(" ").filter(Boolean));

// { width, height, levels }, made smaller so that each pixel is the highest of those it stands for:
// averaging would pull a small defect under the threshold.
export async function readMap(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const step = Math.max(1, Math.ceil(Math.max(width, height) / MAP_SIDE));
  const map = { width: Math.ceil(width / step), height: Math.ceil(height / step) };
  map.levels = new Uint8Array(map.width * map.height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(y / step) * map.width;
    for (let x = 0; x < width; x++) {
      const at = row + Math.floor(x / step), level = data[4 * (y * width + x)];
      if (level > map.levels[at]) map.levels[at] = level;
    }
  }
  return map;
}

// The map as colours on a canvas of its own size.
function colour(map, isOpaque) {
  const pixels = new ImageData(map.width, map.height);
  map.levels.forEach((level, at) => {
    pixels.data.set(HEAT.subarray(4 * level, 4 * level + 4), 4 * at);
    if (isOpaque) pixels.data[4 * at + 3] = 255;
  });
  const sheet = Object.assign(document.createElement("canvas"), { width: map.width, height: map.height });
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  return sheet;
}

// Marching squares: the line where the map crosses `limit`, between pixel centres. A border below
// every limit closes the line at the rim.
function outline({ width, height, levels }, limit, scaleX, scaleY) {
  const path = new Path2D();
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? -1 : levels[y * width + x]);
  const inX = (x) => Math.min(width, Math.max(0, x + 0.5)) * scaleX;
  const inY = (y) => Math.min(height, Math.max(0, y + 0.5)) * scaleY;
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const a = at(x, y), b = at(x + 1, y), c = at(x + 1, y + 1), d = at(x, y + 1);
      const joins = JOINS[8 * (a >= limit) + 4 * (b >= limit) + 2 * (c >= limit) + (d >= limit)];
      if (!joins.length) continue;
      const cross = (from, to) => (limit - from) / (to - from);
      const sides = {
        t: () => [x + cross(a, b), y], b: () => [x + cross(d, c), y + 1],
        l: () => [x, y + cross(a, d)], r: () => [x + 1, y + cross(b, c)],
      };
      for (const [from, to] of joins) {
        const [x1, y1] = sides[from](), [x2, y2] = sides[to]();
        path.moveTo(inX(x1), inY(y1));
        path.lineTo(inX(x2), inY(y2));
      }
    }
  }
  return path;
}

// Heat and outlines over the whole canvas, which has the photo's aspect.
//   view     "overlay", or "heat" for colours that hide the photo
//   limit    score to outline at; null for no outline
//   regions  numbered in the picture: [{ box: [x, y, width, height] }] in pixels of the photo
//   scale    canvas pixels to a pixel of the photo
//   thick    canvas pixels to a pixel of the screen
export function paint(canvas, map, { view, limit, regions = [], scale = 1, thick = 1 }) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.globalAlpha = view === "heat" ? 1 : OPACITY;
  context.drawImage(colour(map, view === "heat"), 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  if (limit === null) return;
  const path = outline(map, 255 * limit, canvas.width / map.width, canvas.height / map.height);
  context.lineCap = "round";
  for (const [ink, size] of [[HALO, 4], [OUTLINE, 2]]) {
    context.strokeStyle = ink;
    context.lineWidth = size * thick;
    context.stroke(path);
  }
  context.font = `600 ${13 * thick}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  regions.forEach(({ box: [x, y] }, index) => {
    const side = 20 * thick, left = Math.min(x * scale, canvas.width - side);
    const top = Math.max(0, y * scale - side - 4 * thick);
    context.fillStyle = "rgb(0 0 0 / 80%)";
    context.fillRect(left, top, side, side);
    context.fillStyle = OUTLINE;
    context.fillText(index + 1, left + side / 2, top + side / 2 + thick);
  });
}

// Paint at the resolution of the screen a canvas that lies over a picture of this size.
export function paintOnScreen(canvas, map, { width, height }, options) {
  const box = canvas.getBoundingClientRect(), thick = window.devicePixelRatio || 1;
  const scale = Math.min(box.width / width, box.height / height) * thick;
  if (!(scale > 0)) return;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  paint(canvas, map, { ...options, scale, thick });
}

// The colours from normal to defect, without transparency.
export function paintRamp(canvas) {
  paint(canvas, { width: 256, height: 1, levels: Uint8Array.from({ length: 256 }, (_, i) => i) }, { view: "heat", limit: null });
}
