// Judges every image again as the threshold moves. All content from files goes through
// textContent; nothing here builds HTML from text.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const total = data.scores.length;
const colours = Uint8Array.from(atob(data.heat), (letter) => letter.charCodeAt(0));  // 256 x RGBA
const cards = [...document.querySelectorAll(".card")];
const cardOfRank = new Map(cards.map((card) => [Number(card.dataset.rank), card]));
const maps = new Map();  // canvas in view -> its map
const FEW_ROWS = 25, MORE_ROWS = 200;  // lines of the table at first, and added at a time
let listed = FEW_ROWS;

const threshold = () => Number(byId("cut").value);
// Whether an image is truly defective; null or undefined where that is not known.
const isDefective = (rank) => data.truths?.[rank];
const isBad = (rank) => data.scores[rank] >= threshold();
const shown = (score) => (Math.floor(score * 1000 + 1e-6) / 1000).toFixed(3);  // as in Python

// How many of the scores, highest first, are at or above the threshold.
function countFlagged(limit) {
  let low = 0, high = total;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (data.scores[middle] >= limit) low = middle + 1; else high = middle;
  }
  return low;
}

// The filter as it stands now, as a function of the rank: asked a hundred thousand times.
function chosen() {
  const show = document.querySelector("input[name=show]:checked").value, limit = threshold();
  const wanted = byId("find").value.trim().toLowerCase();
  const shows = {
    all: () => true,
    bad: (rank) => data.scores[rank] >= limit,
    good: (rank) => data.scores[rank] < limit,
    missed: (rank) => isDefective(rank) === true && data.scores[rank] < limit,
    alarm: (rank) => isDefective(rank) === false && data.scores[rank] >= limit,
    caught: (rank) => isDefective(rank) === true && data.scores[rank] >= limit,
  };
  return (rank) => shows[show](rank)
    && (!wanted || data.names[rank].toLowerCase().includes(wanted));
}

function split(name) {
  const at = Math.max(name.lastIndexOf("/"), name.lastIndexOf("\\"));
  return [name.slice(0, Math.max(0, at)), name.slice(at + 1)];
}

function setVerdict(pill, bad) {
  pill.className = "verdict " + (bad ? "bad" : "good");
  pill.querySelector(".word").textContent = bad ? data.words.bad : data.words.good;
}

// ---- Overlays -----------------------------------------------------------------------------

function overlay(canvas, map, rank, isLarge) {
  const { size, regions, truth = [] } = data.cards[rank], limit = threshold();
  const tags = regions.map(([x, y, width, height, peak], index) => [index + 1, x, y, width, height, peak]);
  const isOutlined = byId("outline").checked && isBad(rank);
  paint(canvas, map, size, {
    colours,
    opacity: byId("opacity").value / 100,
    limit: isOutlined ? 255 * limit : null,
    tags: isLarge && isOutlined ? tags.filter((tag) => tag[5] >= limit).map((tag) => tag.slice(0, 5)) : [],
    truth: byId("true-outline")?.checked ? truth : [],
  });
}

const mapOf = (card) => card.querySelector(".map");
const canvasOf = (card) => card.querySelector("canvas");

// Maps are held only while their card is near the screen: two hundred would fill a phone.
const near = new IntersectionObserver((entries) => {
  for (const { target: canvas, isIntersecting } of entries) {
    if (isIntersecting) load(canvas); else release(canvas);
  }
}, { rootMargin: "400px" });

async function load(canvas) {
  if (maps.has(canvas)) return;
  maps.set(canvas, null);
  const card = canvas.closest(".card");
  await mapOf(card).decode().catch(() => {});
  if (!maps.has(canvas)) return;  // scrolled away meanwhile
  maps.set(canvas, readMap(mapOf(card)));
  overlay(canvas, maps.get(canvas), Number(card.dataset.rank), false);
}

function release(canvas) {
  maps.delete(canvas);
  canvas.width = canvas.height = 0;
}

// Paper shows all cards at once, also those far from the screen. A canvas that has been painted is
// left alone: Chromium prints one that is painted again while printing without its transparency.
function paintForPrint() {
  for (const [rank, card] of cardOfRank) {
    if (!card.hidden && !canvasOf(card).width && mapOf(card).complete) overlay(canvasOf(card), readMap(mapOf(card)), rank, false);
  }
}

// Paper cannot be clicked: regions with their crops are shown, and closed again afterwards.
const opened = new Set();
function openForPrint() {
  for (const card of cards) {
    const details = card.querySelector("details:not([open])");
    if (!details || card.hidden) continue;
    for (const crop of details.querySelectorAll("img")) crop.loading = "eager";
    details.open = true;
    opened.add(details);
  }
}

function afterPrint() {
  for (const details of opened) details.open = false;
  opened.clear();
  for (const card of cards) if (!maps.has(canvasOf(card))) release(canvasOf(card));
}

function repaint() {
  maps.forEach((map, canvas) => {
    if (map) overlay(canvas, map, Number(canvas.closest(".card").dataset.rank), false);
  });
  repaintViewer();
}

// ---- Verdicts, counts, filter, table ------------------------------------------------------

function judge() {
  const limit = threshold(), flagged = countFlagged(limit), percent = 100 * limit;
  const number = (count) => count.toLocaleString("en");
  document.querySelectorAll(".cut-text").forEach((text) => { text.textContent = limit.toFixed(3); });
  byId("flagged").textContent = number(flagged);
  byId("count-all").textContent = number(total);
  byId("count-bad").textContent = number(flagged);
  byId("count-good").textContent = number(total - flagged);
  countOutcomes(limit, number);
  byId("reset").disabled = limit === data.threshold;
  if (byId("rate")) byId("rate").hidden = limit !== data.threshold;
  const above = data.support.filter((score) => score >= limit).length;
  byId("live").textContent = `${number(flagged)} of ${number(total)} flagged`;
  if (byId("support")) {
    byId("support").textContent = `At ${limit.toFixed(3)}, ${above} of the ${data.support.length} `
      + "normal scores that set the threshold would be flagged.";
  }
  byId("cut").setAttribute("aria-valuetext", `${limit.toFixed(3)}, ${flagged} of ${total} flagged`);
  byId("cut").style.setProperty("--at", `${percent}%`);
  byId("opacity-text").textContent = `${byId("opacity").value} %`;
  for (const end of ["x1", "x2"]) byId("cut-line").setAttribute(end, `${percent}%`);
  byId("below").firstElementChild.setAttribute("width", `${percent}%`);
  byId("above").firstElementChild.setAttribute("x", `${percent}%`);
  byId("above").firstElementChild.setAttribute("width", `${100 - percent}%`);
  const passes = chosen();
  let visible = 0;
  for (const [rank, card] of cardOfRank) {
    const bad = isBad(rank);
    setVerdict(card.querySelector(".verdict"), bad);
    setOutcome(card.querySelector(".outcome"), rank);
    card.querySelector(".changed").hidden = bad === (data.scores[rank] >= data.threshold);
    card.hidden = !passes(rank);
    visible += !card.hidden;
  }
  byId("nothing").hidden = visible > 0 || cards.length === 0;
  list();
  repaint();
}

// What the threshold does to images whose truth is known.
function countOutcomes(limit, number) {
  if (!data.truths) return;
  const at = Math.round(limit * (data.above.good.length - 1));  // a place of the slider
  const [good, defective] = [data.above.good, data.above.defective];
  const alarms = good[at], caught = defective[at], missed = defective[0] - caught;
  const parts = [];
  if (defective[0]) parts.push(`caught ${number(caught)} of ${number(defective[0])}`, `missed ${number(missed)}`);
  if (good[0]) parts.push(`false alarms ${number(alarms)} of ${number(good[0])} good`);
  byId("outcomes").textContent = parts.join(" · ");
  const listed = { missed: 0, alarm: 0, caught: 0 };
  data.truths.forEach((truth, rank) => {
    const bad = data.scores[rank] >= limit;
    if (truth === true) listed[bad ? "caught" : "missed"] += 1;
    if (truth === false && bad) listed.alarm += 1;
  });
  for (const [name, count] of Object.entries(listed)) byId(`count-${name}`).textContent = number(count);
}

function setOutcome(label, rank) {
  if (!label) return;
  const bad = isBad(rank), defective = isDefective(rank);
  label.textContent = defective ? (bad ? "Caught" : "Missed") : bad ? "False alarm" : "Correct";
  label.className = `outcome ${bad === defective ? "right" : "wrong"}`;
}

function list() {
  if (!byId("rows")) return;
  const ranks = [], passes = chosen();
  for (let rank = 0; rank < total; rank++) if (passes(rank)) ranks.push(rank);
  byId("listed").textContent = `${ranks.length.toLocaleString("en")} of ${total.toLocaleString("en")}`;
  byId("rows").replaceChildren(...ranks.slice(0, listed).map(row));
  byId("more").hidden = ranks.length <= listed;
}

function row(rank) {
  const line = document.createElement("tr"), p = data.p_values[rank];
  const cell = (content) => line.appendChild(document.createElement("td")).append(content);
  cell(rank + 1);
  const [folder, file] = split(data.names[rank]);
  const name = document.createElement(cardOfRank.has(rank) ? "a" : "span");
  name.className = "path";
  name.textContent = file;
  if (cardOfRank.has(rank)) {
    name.href = "#images";
    name.addEventListener("click", (event) => { event.preventDefault(); view(rank); });
  }
  cell(name);
  const place = document.createElement("span");
  place.className = "place";
  place.textContent = folder;
  line.lastChild.append(place);
  cell(shown(data.scores[rank]));
  cell(p < 0.001 ? "< 0.001" : p.toFixed(3));
  const pill = document.querySelector(".verdict").cloneNode(true);
  setVerdict(pill, isBad(rank));
  cell(pill);
  return line;
}

// ---- Wiring -------------------------------------------------------------------------------

let isWaiting = false;
function soon() {  // at most once a frame, however fast the slider moves
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => { isWaiting = false; judge(); });
}

function toggle(button, holder) {
  const isOn = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", isOn);
  holder.classList.toggle("bare", !isOn);
}

for (const card of cards) {
  near.observe(canvasOf(card));
  card.querySelector(".frame").addEventListener("click", () => view(Number(card.dataset.rank)));
  const button = card.querySelector(".overlay");
  button.hidden = false;
  button.addEventListener("click", () => toggle(button, card));
}
for (const form of [byId("cutter"), byId("tools")]) {
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { listed = FEW_ROWS; soon(); });
}
if (byId("all")) {
  byId("all").hidden = false;
  byId("more").addEventListener("click", () => { listed += MORE_ROWS; list(); });
}
byId("reset").addEventListener("click", () => { byId("cut").value = data.threshold; judge(); byId("cut").focus(); });
byId("print").addEventListener("click", async () => {
  openForPrint();
  const pictures = cards.flatMap((card) => [mapOf(card), ...(card.hidden ? [] : card.querySelectorAll(".crops img"))]);
  await Promise.all(pictures.map((picture) => picture.decode().catch(() => {})));
  window.print();
});
window.addEventListener("beforeprint", openForPrint);
window.addEventListener("beforeprint", paintForPrint);
window.addEventListener("afterprint", afterPrint);
window.addEventListener("resize", soon);
