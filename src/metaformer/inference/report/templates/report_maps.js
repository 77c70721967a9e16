"use strict";
// From an 8-bit map to heat and outlines on a canvas. What to draw is passed in; nothing here
// looks at the page's controls. The service's page uses this file too.

const LARGEST_CANVAS = 4096;  // pixels a side, however far a picture is enlarged
const FOUND = "rgb(0 229 255)", TRUE = "rgb(255 255 255)", HALO = "rgb(0 0 0 / 75%)";

// Levels of the map with a border below every threshold, so that outlines close at the rim.
function readMap(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const sheet = Object.assign(document.createElement("canvas"), { width, height });
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const stride = width + 2, levels = new Int16Array(stride * (height + 2)).fill(-1);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) levels[(y + 1) * stride + x + 1] = data[i];
  }
  return { width, height, levels };
}

// The map in colours (256 x RGBA) on a canvas of its own size.
function colourMap({ width, height, levels }, colours, isOpaque) {
  const pixels = new ImageData(width, height), stride = width + 2;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const level = 4 * levels[(y + 1) * stride + x + 1];
      pixels.data.set(colours.subarray(level, level + 4), i);
      if (isOpaque) pixels.data[i + 3] = 255;
    }
  }
  const sheet = Object.assign(document.createElement("canvas"), { width, height });
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  return sheet;
}

// Marching squares: the line where the map crosses `limit`, between pixel centres, as segments
// in pixels of the canvas. Corners that touch count as joined, as in the detector's regions.
function outline(map, limit, scaleX, scaleY) {
  const path = new Path2D(), { width, height, levels } = map, stride = width + 2;
  const line = (x1, y1, x2, y2) => {
    const inX = (x) => Math.min(width, Math.max(0, x - 0.5)) * scaleX;
    const inY = (y) => Math.min(height, Math.max(0, y - 0.5)) * scaleY;
    path.moveTo(inX(x1), inY(y1));
    path.lineTo(inX(x2), inY(y2));
  };
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      const i = y * stride + x;
      const a = levels[i], b = levels[i + 1], c = levels[i + stride + 1], d = levels[i + stride];
      const code = 8 * (a >= limit) + 4 * (b >= limit) + 2 * (c >= limit) + (d >= limit);
      if (code === 0 || code === 15) continue;
      const top = x + (limit - a) / (b - a), bottom = x + (limit - d) / (c - d);
      const left = y + (limit - a) / (d - a), right = y + (limit - b) / (c - b);
      switch (code) {
        case 1: case 14: line(x, left, bottom, y + 1); break;
        case 2: case 13: line(bottom, y + 1, x + 1, right); break;
        case 3: case 12: line(x, left, x + 1, right); break;
        case 4: case 11: line(top, y, x + 1, right); break;
        case 6: case 9: line(top, y, bottom, y + 1); break;
        case 7: case 8: line(x, left, top, y); break;
        case 5: line(x, left, top, y); line(bottom, y + 1, x + 1, right); break;
        case 10: line(top, y, x + 1, right); line(x, left, bottom, y + 1); break;
      }
    }
  }
  return path;
}

// Where the numbers of regions go, so that none covers another: at a corner of its region if there
// is room, else as near as possible. `tags` are [text, x, y, width, height] in pixels of the canvas;
// what comes back are [text, left, top, x, y], the last two being the point of the region it stands nearest to.
function placeTags(tags, canvasWidth, canvasHeight, side, gap) {
  const placed = [];
  const isFree = (left, top) => left >= 0 && top >= 0 && left + side <= canvasWidth
    && top + side <= canvasHeight && placed.every(
      ([, l, t]) => Math.abs(l - left) > side || Math.abs(t - top) > side);
  for (const [text, x, y, width, height] of tags) {
    const corners = [
      [x, y - side - gap], [x + width - side, y - side - gap], [x, y + height + gap],
      [x + width - side, y + height + gap], [x - side - gap, y], [x + width + gap, y], [x + gap, y + gap],
    ];
    for (let ring = 1; ring <= 24; ring++) {
      for (let turn = 0; turn < 8 + 4 * ring; turn++) {
        const angle = -Math.PI / 2 + (2 * Math.PI * turn) / (8 + 4 * ring), far = ring * side * 0.8;
        corners.push([x + far * Math.cos(angle), y - side - gap + far * Math.sin(angle)]);
      }
    }
    const [left, top] = corners.find(([l, t]) => isFree(l, t))
      ?? [Math.min(Math.max(0, x), canvasWidth - side), Math.max(0, y - side - gap)];
    const within = (value, low, size) => Math.min(low + size, Math.max(low, value));
    placed.push([text, left, top, within(left + side / 2, x, width), within(top + side / 2, y, height)]);
  }
  return placed;
}

function strokeTwice(context, path, colour, thick) {
  for (const [ink, size] of [[HALO, 4], [colour, 2]]) {
    context.strokeStyle = ink;
    context.lineWidth = size * thick;
    context.stroke(path);
  }
}

// Heat and outlines at the resolution of the screen, on a canvas laid over the photo of
// [width, height] pixels. `limit` is the level to outline, null for none; `tags` are
// [text, x, y, width, height] and `truth` the polygons [x, y, x, y ...] of the true defects, both in
// pixels of the original image.
function paint(canvas, map, [width, height], options) {
  const { colours, opacity, isOpaque = false, limit, tags = [], truth = [] } = options;
  const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  const wanted = Math.min(box.width / width, box.height / height) * ratio;
  if (!(wanted > 0)) return;
  const scale = Math.min(wanted, LARGEST_CANVAS / Math.max(width, height));
  const thick = (ratio * scale) / wanted;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  paintAt(canvas, map, { colours, opacity, isOpaque, limit, tags, truth, scale, thick });
}

// The same on a canvas that has its size. `scale` is canvas pixels to a pixel of the image, `thick`
// canvas pixels to a pixel of the screen.
function paintAt(canvas, map, { colours, opacity, isOpaque, limit, tags, truth, scale, thick }) {
  const context = canvas.getContext("2d");
  context.globalAlpha = opacity;
  context.drawImage(colourMap(map, colours, isOpaque), 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  context.lineCap = context.lineJoin = "round";
  if (limit !== null) {
    const path = outline(map, limit, canvas.width / map.width, canvas.height / map.height);
    strokeTwice(context, path, FOUND, thick);
  }
  if (truth.length) {
    const path = new Path2D();
    for (const points of truth) {
      points.forEach((_, i) => {
        if (i % 2) return;
        const x = points[i] * scale, y = points[i + 1] * scale;
        if (i) path.lineTo(x, y); else path.moveTo(x, y);
      });
      path.closePath();
    }
    context.setLineDash([7 * thick, 6 * thick]);
    strokeTwice(context, path, TRUE, thick);
    context.setLineDash([]);
  }
  const side = 20 * thick, gap = 4 * thick;
  const boxes = tags.map(([text, ...box]) => [text, ...box.map((value) => value * scale)]);
  context.font = `600 ${13 * thick}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "center";
  for (const [text, left, top, x, y] of placeTags(boxes, canvas.width, canvas.height, side, gap)) {
    const centre = [left + side / 2, top + side / 2];
    if (Math.hypot(centre[0] - x, centre[1] - y) > 1.2 * side) {  // far away: a line says whose it is
      const line = new Path2D();
      line.moveTo(...centre);
      line.lineTo(x, y);
      strokeTwice(context, line, FOUND, thick / 2);
    }
    context.fillStyle = "rgb(0 0 0 / 85%)";
    context.fillRect(left, top, side, side);
    context.fillStyle = FOUND;
    context.fillText(text, centre[0], centre[1] + thick);
  }
}
