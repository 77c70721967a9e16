// Zoom and pan of the enlarged view: wheel, pinch, drag, double click, + - 0 and buttons. The
// service's page uses this file too.

const FARTHEST = 16;  // times the size that fits the window

// `layer` fills `stage` and is moved and enlarged inside it; onChange is called after each change.
function makeZoom(stage, layer, onChange) {
  let zoom = 1, x = 0, y = 0, isWaiting = false;
  const pointers = new Map();

  function apply() {
    const { width, height } = stage.getBoundingClientRect();
    zoom = Math.min(FARTHEST, Math.max(1, zoom));
    x = Math.min(0, Math.max(width * (1 - zoom), x));
    y = Math.min(0, Math.max(height * (1 - zoom), y));
    layer.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
    stage.classList.toggle("zoomed", zoom > 1);
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; onChange(zoom); });
  }

  // Enlarge by a factor, keeping what is under the point (of the window) where it is.
  function by(factor, clientX, clientY) {
    const box = stage.getBoundingClientRect();
    const pointX = (clientX ?? box.left + box.width / 2) - box.left;
    const pointY = (clientY ?? box.top + box.height / 2) - box.top;
    const next = Math.min(FARTHEST, Math.max(1, zoom * factor));
    x = pointX - ((pointX - x) * next) / zoom;
    y = pointY - ((pointY - y) * next) / zoom;
    zoom = next;
    apply();
  }

  function reset() {
    zoom = 1;
    apply();
  }

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    by(Math.exp(-event.deltaY / (event.deltaMode ? 10 : 400)), event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    if (event.target.closest("button")) return;
    if (zoom > 1) reset(); else by(3, event.clientX, event.clientY);
  });
  stage.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button")) return;
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const [other] = [...pointers.values()].filter(({ pointerId }) => pointerId !== event.pointerId);
    if (other) {
      const reach = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      const middle = [(event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2];
      by(reach(event) / Math.max(1, reach(before)), ...middle);
      x += (event.clientX - before.clientX) / 2;
      y += (event.clientY - before.clientY) / 2;
    } else {
      x += event.clientX - before.clientX;
      y += event.clientY - before.clientY;
    }
    pointers.set(event.pointerId, event);
    apply();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
  return { by, reset };
}
