// The enlarged view: one image over the whole window, with what it is to be compared with.

let viewed = null;  // { rank, map } of the image in the dialog
const zoom = makeZoom(byId("stage"), byId("layer"), () => repaintViewer());

function repaintViewer() {
  if (viewed && viewed.map) overlay(byId("viewer-canvas"), viewed.map, viewed.rank, true);
}

async function view(rank) {
  const card = cardOfRank.get(rank), current = { rank, map: null };
  const [folder, file] = split(data.names[rank]);
  viewed = current;
  zoom.reset();
  byId("viewer-image").src = card.querySelector("img").src;
  byId("viewer-image").alt = data.names[rank];
  byId("viewer-name").textContent = file;
  byId("viewer-name").title = folder ? data.names[rank] : file;
  byId("viewer-score").textContent = shown(data.scores[rank]);
  setVerdict(byId("viewer").querySelector(".verdict"), isBad(rank));
  showBeside(card, rank);
  byId("previous").disabled = neighbour(-1) === undefined;
  byId("next").disabled = neighbour(1) === undefined;
  if (!byId("viewer").open) byId("viewer").showModal();
  byId("viewer-canvas").width = 0;
  await mapOf(card).decode().catch(() => {});
  current.map = readMap(mapOf(card));
  if (viewed === current) repaintViewer();
}

// The nearest good image, the regions at full sharpness and the way to the file itself.
function showBeside(card, rank) {
  const good = data.goods[data.cards[rank].good];
  byId("good").hidden = !good;
  if (good) {
    byId("good-image").src = good[1];
    byId("good-image").alt = `Good image ${good[0]}`;
    byId("good-name").textContent = good[0];
  }
  byId("viewer-crops").replaceChildren(
    ...[...card.querySelectorAll(".crops figure")].map((figure) => figure.cloneNode(true)));
  const link = card.querySelector(".original");
  byId("viewer-link").hidden = !link;
  if (link) byId("viewer-link").href = link.getAttribute("href");
  byId("beside").hidden = !good && !link && !byId("viewer-crops").children.length;
}

function neighbour(step) {
  const passes = chosen();
  const ranks = [...cardOfRank.keys()].filter((rank) => passes(rank) || rank === viewed.rank);
  return ranks[ranks.indexOf(viewed.rank) + step];
}

function move(step) {
  const rank = neighbour(step);
  if (rank !== undefined) view(rank);
}

byId("close").addEventListener("click", () => byId("viewer").close());
byId("previous").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("zoom-in").addEventListener("click", () => zoom.by(1.5));
byId("zoom-out").addEventListener("click", () => zoom.by(1 / 1.5));
byId("zoom-reset").addEventListener("click", () => zoom.reset());
byId("viewer-overlay").addEventListener("click", () => toggle(byId("viewer-overlay"), byId("viewer")));
byId("viewer").addEventListener("close", () => { viewed = null; });
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
byId("viewer").addEventListener("keydown", ({ key }) => {
  if (key === "ArrowLeft") move(-1);
  if (key === "ArrowRight") move(1);
  if (key === "+") zoom.by(1.5);
  if (key === "-") zoom.by(1 / 1.5);
  if (key === "0") zoom.reset();
});
judge();
