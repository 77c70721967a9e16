// The photos of the last check and what was found, kept by the browser until they are cleared, so
// that loading the page again loses nothing. Where it cannot keep them (private windows, a full
// disk) the page works all the same.

const NAME = "metaformer", STORE = "entries";
const KEPT = [
  "key", "path", "name", "folder", "state", "error", "canRetry", "sha256", "score", "rawScore",
  "pValue", "pValueKind", "isAnomalous", "width", "height", "regions", "picture",
  "outline", "maskSays", "label", "warnings",
];

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
  return opened;
}

async function inStore(mode, work) {
  try {
    const transaction = (await open()).transaction(STORE, mode), store = transaction.objectStore(STORE);
    return await new Promise((resolve, reject) => {
      const asked = work(store);
      transaction.oncomplete = () => resolve(asked?.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } catch {
    return undefined;
  }
}

export async function keepEntry(detectorId, entry) {
  const kept = Object.fromEntries(KEPT.map((name) => [name, entry[name]]));
  const whole = { ...kept, detectorId, file: entry.file };
  const isKept = await inStore("readwrite", (store) => store.put(whole, entry.key));
  // Without the file there is less to keep, and the results are still worth it.
  if (isKept === undefined) await inStore("readwrite", (store) => store.put({ ...whole, file: null }, entry.key));
}

export const keptEntries = async () => (await inStore("readonly", (store) => store.getAll())) ?? [];
export const forgetEntries = () => inStore("readwrite", (store) => store.clear());
