"use strict";
// From an 8-bit map to heat and outlines on a canvas. What to draw is passed in; nothing here
// looks at the page's controls.

// Levels of the map with a border below every threshold, so that outlines close at the rim.
function readMap(image, colours) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const sheet = Object.assign(document.createElement("canvas"), { width, height });
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  const stride = width + 2, levels = new Int16Array(stride * (height + 2)).fill(-1);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const level = pixels.data[i];
      levels[(y + 1) * stride + x + 1] = level;
      pixels.data.set(colours.subarray(4 * level, 4 * level + 4), i);
    }
  }
  context.putImageData(pixels, 0, 0);
  return { width, height, levels, sheet };
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

// Heat and outlines at the resolution of the screen, on a canvas laid over the photo. `limit` is
// the level to outline, null for none; `tags` are [number, x, y] in pixels of the original image.
function paint(canvas, map, [width, height], { opacity, limit, tags }) {
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / width, box.height / height) * (window.devicePixelRatio || 1);
  if (!(scale > 0)) return;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d"), thick = window.devicePixelRatio || 1;
  context.globalAlpha = opacity;
  context.drawImage(map.sheet, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  if (limit === null) return;
  const path = outline(map, limit, canvas.width / map.width, canvas.height / map.height);
  context.lineCap = "round";
  for (const [colour, size] of [["rgb(0 0 0 / 75%)", 4], ["rgb(0 229 255)", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = size * thick;
    context.stroke(path);
  }
  context.font = `600 ${13 * thick}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "center";
  for (const [text, x, y] of tags) {
    const side = 20 * thick, left = Math.min(x * scale, canvas.width - side);
    const top = Math.max(0, y * scale - side - 4 * thick);
    context.fillStyle = "rgb(0 0 0 / 80%)";
    context.fillRect(left, top, side, side);
    context.fillStyle = "rgb(0 229 255)";
    context.fillText(text, left + side / 2, top + side / 2 + thick);
  }
}
