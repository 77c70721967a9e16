// The detectors on the server: choosing, downloading, deleting.

import { readJson, request } from "./api.js";
import { byId, fileName, make, plural, save, shownBytes, shownRate } from "./elements.js";

let detectors = [];
let chosenId = null;
let onChoose = () => {};

export function setUpProducts(callback) {
  onChoose = callback;
  byId("products").addEventListener("change", ({ target }) => {
    chosenId = target.value;  // without drawing again: the focus is in the list
    onChoose(detectors.find(({ id }) => id === chosenId) ?? null);
  });
}

// Reads the list anew. What was chosen stays so while it is there.
export async function loadProducts() {
  ({ detectors } = await readJson("api/detectors"));
  chooseProduct(chosenId);
  return detectors;
}

export function chooseProduct(id) {
  const found = detectors.find((detector) => detector.id === id) ?? null;
  chosenId = found?.id ?? null;
  draw();
  onChoose(found);
}

function draw() {
  byId("no-products").hidden = detectors.length > 0;
  byId("products").replaceChildren(...detectors.map(row));
}

function row(detector) {
  const { id, name, made, support_count: count, false_alarm_rate: rate, bytes } = detector;
  const radio = make("input", { type: "radio", name: "product", value: id, checked: id === chosenId, autocomplete: "off" });
  const when = new Date(made).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const label = make(
    "label", {}, radio, make("span", {}, make("b", { className: "path" }, name), make(
      "span", { className: "note" }, `${plural(count, "good photo")}, ${shownRate(rate)} asked, made ${when}, ${shownBytes(bytes)}`,
    )),
  );
  const download = make("button", { type: "button", "aria-label": `Download the detector of ${name}` }, "Download");
  download.addEventListener("click", () => run(download, () => fetchFile(detector)));
  const remove = make("button", { type: "button", "aria-label": `Delete the detector of ${name}` }, "Delete");
  remove.addEventListener("click", () => askToDelete(detector, remove));
  return make("div", { className: "product" }, label, make("div", { className: "row" }, download, remove));
}

async function fetchFile({ id, name }) {
  const response = await request(`api/detectors/${id}/file`);
  save(await response.blob(), `${fileName(name)}.metaformer`);
}

function askToDelete(detector, button) {
  const dialog = byId("delete-dialog");
  byId("delete-title").textContent = `Delete the detector of “${detector.name}”?`;
  byId("delete-cancel").onclick = () => dialog.close();
  byId("delete-yes").onclick = () => {
    dialog.close();
    run(button, async () => {
      try {
        await request(`api/detectors/${detector.id}`, { method: "DELETE" });
      } catch (error) {
        if (error.status !== 404) throw error;  // gone already is what was wanted
      }
      await loadProducts();
      (document.querySelector("#products input") ?? byId("check-title")).focus();
    });
  };
  dialog.showModal();
}

async function run(button, work) {
  button.disabled = true;
  byId("trouble").hidden = true;
  try {
    await work();
  } catch (error) {
    byId("trouble").textContent = error.message;
    byId("trouble").hidden = false;
  } finally {
    button.disabled = false;
  }
}
