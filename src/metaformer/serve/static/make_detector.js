// Step 1: good photos become a detector.

import { followJob, readJson } from "./api.js";
import { announcer, byId, make, plural, shownRate } from "./elements.js";
import { acceptFiles, fileKey, refusal, thumbnail } from "./files.js";
import { describeLeft } from "./folders.js";
import { isMask } from "./masks.js";
import { isAmongDefects } from "./truth.js";

const FEW = 4;  // fewer photos than this get a warning
const SIDE = 240;  // of a thumbnail
const announce = announcer(byId("make-live"));
let photos = [];  // { key, file, path, item, url }
let isBusy = false;

export function setUpMaking(onMade) {
  acceptFiles(byId("good-drop"), byId("good-files"), add);
  byId("remove-all").addEventListener("click", removeAll);
  byId("rate").addEventListener("input", describe);
  byId("preset").addEventListener("input", () => {
    byId("aligned").disabled = byId("preset").value !== "feature";
    if (byId("aligned").disabled) byId("aligned").checked = false;
  });
  byId("make-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!isBusy && isComplete()) submit(onMade);
  });
  byId("name").addEventListener("input", () => { byId("name-error").textContent = ""; });
  describe();
}

// Why a file is not among the good photos; null if the server shall judge.
function whyLeftOut(found) {
  if (isMask(found)) return "a mask that marks defects; left out.";
  if (isAmongDefects(found)) return "in a folder of defective photos; left out.";
  return refusal(found);
}

async function add(files, left) {
  if (isBusy) return;
  const known = new Set(photos.map(({ key }) => key)), unused = [...left];
  for (const found of files) {
    const key = fileKey(found), why = whyLeftOut(found);
    if (why) unused.push({ path: found.path, reason: why });
    if (why || known.has(key)) continue;
    known.add(key);
    const photo = { ...found, key };
    photo.item = thumb(photo);
    photos.push(photo);
    byId("good-list").append(photo.item);
  }
  byId("make-error").textContent = describeLeft(unused);
  describe();
  for (const photo of [...photos]) {  // one after another: ten large photos at once fill a phone
    if (photo.isTried || !photos.includes(photo)) continue;
    photo.isTried = true;
    const picture = await thumbnail(photo.file, SIDE);
    if (!picture) continue;
    photo.url = picture.url;
    if (!photos.includes(photo)) URL.revokeObjectURL(photo.url);
    photo.item.querySelector(".blank").replaceWith(make("img", { src: photo.url, alt: photo.file.name }));
  }
}

function thumb(photo) {
  const button = make("button", { type: "button", "aria-label": `Remove ${photo.file.name}` });
  button.addEventListener("click", () => remove(photo));
  return make("li", { title: photo.path }, make("span", { className: "blank" }, photo.file.name), button);
}

function remove(photo) {
  if (isBusy) return;
  const at = photos.indexOf(photo);
  photos.splice(at, 1);
  photo.item.remove();
  if (photo.url) URL.revokeObjectURL(photo.url);
  byId("make-error").textContent = "";
  describe();
  const next = photos[Math.min(at, photos.length - 1)];
  (next ? next.item.querySelector("button") : byId("good-files")).focus();
}

function removeAll() {
  if (isBusy) return;
  for (const { item, url } of photos) {
    item.remove();
    if (url) URL.revokeObjectURL(url);
  }
  photos = [];
  byId("make-error").textContent = "";
  describe();
  byId("good-files").focus();
}

// What the number of photos and the rate can come to, in words.
function describe() {
  const count = photos.length, rate = Number(byId("rate").value), needed = Math.ceil(1 / rate - 1);
  const few = count > 0 && count < FEW;
  byId("good-count").textContent = count ? `${plural(count, "photo")}.${few ? ` That is few: with ${FEW} or more, better ten, the detector knows how good parts differ.` : ""}` : "";
  byId("good-count").className = few ? "warning" : "note";
  byId("remove-all").hidden = count === 0;
  const asked = shownRate(rate);
  if (count === 1) {
    byId("promise").textContent = `One photo shows nothing of how good parts differ: the rate of ${asked} will be a guess.`;
  } else if (count >= needed) {
    byId("promise").textContent = `Enough photos for a promise: about ${asked} of good parts or fewer, as long as they are like these.`;
  } else {
    byId("promise").textContent = `A promise of ${asked} takes ${needed} photos. With fewer, the rate is an estimate`
      + (count ? `; the best that ${count} can promise is ${shownRate(1 / (count + 1))}.` : ".");
  }
}

function isComplete() {
  byId("make-error").textContent = "";
  const name = byId("name").value.trim();
  byId("name-error").textContent = name ? "" : "Give the product a name.";
  byId("name").setAttribute("aria-invalid", !name);
  if (!photos.length) byId("make-error").textContent = "Choose some good photos first.";
  if (!photos.length) byId("good-files").focus(); else if (!name) byId("name").focus();
  return Boolean(name && photos.length);
}

function body() {
  const form = new FormData();
  form.append("name", byId("name").value.trim());
  form.append("false_alarm_rate", byId("rate").value);
  form.append("preset", byId("preset").value);
  form.append("aligned", byId("aligned").checked);
  for (const [field, id] of [["resolution", "resolution"], ["white_level", "white-level"]]) {
    if (byId(id).value) form.append(field, byId(id).value);
  }
  for (const { file } of photos) form.append("images", file, file.name);
  return form;
}

function setBusy(busy) {
  isBusy = busy;
  byId("making").hidden = !busy;
  byId("good-files").disabled = busy;
  byId("remove-all").disabled = busy;
  // Not disabled: it has the focus, and a click is ignored while busy.
  byId("make-button").setAttribute("aria-disabled", busy);
  for (const { item } of photos) item.querySelector("button").disabled = busy;
}

function progress(text, done = 0, total = 0, isImportant = false) {
  const bar = byId("make-progress");
  byId("make-state").textContent = text;
  if (total) Object.assign(bar, { max: total, value: done }); else bar.removeAttribute("value");
  announce(text, isImportant);
}

async function submit(onMade) {
  setBusy(true);
  byId("made").hidden = true;
  progress("Sending photos …", 0, 0, true);
  try {
    const { job } = await readJson("api/detectors", {
      method: "POST", body: body(), once: true,
      onWait: (detail) => progress(`Waiting: ${detail}`),
    });
    const over = await followJob(job, ({ state, done, total }) => {
      if (state === "waiting") progress("Waiting for another detector to be finished …");
      else progress(total ? `Learning the product: step ${done} of ${total}` : "Learning the product …", done, total);
    });
    if (over.state === "failed") throw new Error(over.error ?? "The detector could not be made.");
    await show(over, onMade);
  } catch (error) {
    announce("", true);
    byId("make-error").textContent = error.message;
  } finally {
    setBusy(false);
  }
}

async function show({ detector, warnings }, onMade) {
  byId("made-title").textContent = `The detector of “${detector.name}” is ready`;
  byId("made-promise").textContent = detector.guarantee;
  // The server's last warning repeats the promise where it is none.
  const others = warnings.filter((text) => text !== detector.guarantee);
  byId("made-warnings").replaceChildren(...others.map((text) => make("li", {}, text)));
  byId("made").hidden = false;
  announce("", true);
  byId("made").focus();
  await onMade(detector);
}
