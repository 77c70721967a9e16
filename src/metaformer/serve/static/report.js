// The report: made by the service, the same page that `metaformer predict` writes.

import { request } from "./api.js";
import { reason } from "./scoring.js";

const PICTURES = 200;  // as many as a report keeps; those of wrong verdicts go first

export async function makeReport(detector, entries, failures) {
  const isWrong = ({ truth, isAnomalous }) => truth && (truth === "defective") !== isAnomalous;
  const first = new Set([...entries.filter(isWrong), ...entries].slice(0, PICTURES));
  const body = {
    entries: entries.map((entry) => ({
      name: entry.path, score: entry.score, p_value: entry.pValue, is_anomalous: entry.isAnomalous,
      width: entry.width, height: entry.height, regions: entry.regions,
      picture: first.has(entry) ? entry.picture : null, truth: entry.truth, kind: entry.kind,
      outline: entry.truth === "defective" ? entry.outline ?? [] : [],
    })),
    failures: failures.map((entry) => ({ name: entry.path, reason: reason(entry) })),
  };
  const answer = await request(`api/detectors/${detector.id}/report`, {
    method: "POST", body: new Blob([JSON.stringify(body)], { type: "application/json" }),
  });
  return answer.blob();
}
