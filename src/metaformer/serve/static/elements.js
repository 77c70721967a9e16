// Making and finding elements. Text from files and from the server only ever becomes text.

export const byId = (id) => document.getElementById(id);

// An element with properties (or, for names with a dash, attributes) and children.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const number = (count) => count.toLocaleString("en");
export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

// Three decimals rounded down, as everywhere: 0.4996 is not flagged and must not read 0.500.
export const shownScore = (score) => (Math.floor(score * 1000 + 1e-6) / 1000).toFixed(3);
export const shownP = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));
export const shownRate = (rate) => `${Number((100 * rate).toPrecision(2))} %`;

export function shownBytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export function pill(isBad) {
  return make("span", { className: `verdict ${isBad ? "bad" : "good"}` }, isBad ? "Flagged" : "OK");
}

// Nodes in this order inside the holder. Those that are there already stay: moving a node would
// take the focus away from it.
export function arrange(holder, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...holder.children]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, index) => {
    if (holder.children[index] !== node) holder.insertBefore(node, holder.children[index] ?? null);
  });
}

// For screen readers: not every step of a progress, but the first and then one every few seconds.
export function announcer(element, everySeconds = 4) {
  let last = -Infinity;
  return (text, isImportant = false) => {
    const now = performance.now();
    if (!isImportant && now - last < 1000 * everySeconds) return;
    last = now;
    element.textContent = text;
  };
}

export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = make("a", { href: address, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  // The browser reads it after this turn; a minute is plenty for any disk.
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

// A product's name as part of a file name on any system.
export const fileName = (name) => name.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 60) || "detector";
