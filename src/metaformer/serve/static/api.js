// Requests to the service: the token, waiting when it is busy, errors in words.

import { byId } from "./elements.js";

const TOKEN_KEY = "metaformer-token";
const BUSY_SECONDS = 180;  // how long a busy service is asked again before the user is
const LOST_WAITS = [1, 2, 4];  // seconds between tries when no answer comes at all

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let token = recall();
let asking = null;  // the open question for the token; several requests share it

function recall() {
  try { return sessionStorage.getItem(TOKEN_KEY); } catch { return null; }
}

function keep(text) {
  token = text;
  try { sessionStorage.setItem(TOKEN_KEY, text); } catch { /* kept in memory then */ }
}

function askToken(isWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog"), field = byId("token");
    let given = null;
    field.value = "";
    byId("token-error").textContent = isWrong ? "The server does not accept this token." : "";
    byId("token-form").onsubmit = (event) => {
      event.preventDefault();
      if (!/^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/.test(field.value.trim())) {
        byId("token-error").textContent = "A token is made of plain letters, digits and signs.";
        field.focus();
        return;
      }
      given = field.value.trim();
      dialog.close();
    };
    byId("token-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      asking = null;
      if (given !== null) keep(given);
      resolve(given !== null);
    };
    dialog.showModal();
    field.focus();
  });
  return asking;
}

function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

async function readDetail(response) {
  try {
    const { detail } = await response.json();
    if (typeof detail === "string" && detail) return detail;
  } catch { /* not ours: a proxy's page, perhaps */ }
  return `The server answered ${response.status} ${response.statusText}.`;
}

// A server that refuses a large body hangs up while it is still being sent, and the browser then
// tells of no answer at all.
async function explainLoss(body) {
  const isThere = body && await fetch("health", { cache: "no-store" }).then(({ ok }) => ok, () => false);
  return isThere
    ? new ApiError(413, "The server broke off the upload. Perhaps it is larger than it takes: send fewer or smaller photos.")
    : new ApiError(0, "The server does not answer. Is it still running?");
}

// The response, when it is a good one.
//   once    the request must not be sent twice when its answer is lost
//   onWait  called with the server's words before each wait
// Throws ApiError, or what the signal was aborted with.
export async function request(path, { method = "GET", body, signal, once = false, onWait = () => {} } = {}) {
  const started = performance.now();
  let lost = 0;
  for (;;) {
    const used = token;
    const headers = used === null ? {} : { Authorization: `Bearer ${used}` };
    let response;
    try {
      response = await fetch(path, { method, body, signal, headers, cache: "no-store" });
    } catch {
      signal?.throwIfAborted();
      if (once || lost === LOST_WAITS.length) {
        throw await explainLoss(body);
      }
      onWait("The server does not answer.");
      await wait(LOST_WAITS[lost++], signal);
      continue;
    }
    if (response.ok) return response;
    if (response.status === 401) {
      // Another request may have been given a new token meanwhile.
      if (used !== token || await askToken(used !== null)) continue;
      throw new ApiError(401, "No token was given. Load the page again to give it.");
    }
    const detail = await readDetail(response);
    const seconds = Number(response.headers.get("Retry-After"));
    const isBusy = response.status === 429 || response.status === 503;
    if (!isBusy || !(seconds > 0) || performance.now() - started > 1000 * BUSY_SECONDS) {
      throw new ApiError(response.status, detail);
    }
    onWait(detail);
    await wait(seconds, signal);
  }
}

export const readJson = async (path, options) => (await request(path, options)).json();

// The job when it is over; onStep is called with each state of it on the way.
export async function followJob(job, onStep) {
  while (job.state === "waiting" || job.state === "running") {
    onStep(job);
    await wait(0.4);
    job = await readJson(`api/jobs/${job.id}`);
  }
  return job;
}
