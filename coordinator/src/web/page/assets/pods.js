// The pods of a run: their members in the order of the layers, and what each of them does.

import { h } from "/dom.js";
import { facts, section, state } from "/parts.js";

function pod(row) {
  return h("li", { key: row.mark },
    h("h3", null, `round of ${row.owner} `, state(row.state), h("span", { class: "label" }, ` ${row.mark}`)),
    row.problem && h("p", { class: "problem" }, row.problem),
    row.stages.length ? h("ol", { class: "stages", "aria-label": `members of the pod of ${row.owner}` }, row.stages.map((stage, index) =>
      h("li", { key: index }, h("b", null, stage.agent), h("span", { class: "label" }, stage.layers), state(stage.state))))
      : h("p", { class: "none" }, "Its members are not known: it was formed before the coordinator was started."));
}

export function pods(pods) {
  const sizes = pods.sizes && (pods.sizes[0] === pods.sizes[1] ? `${pods.sizes[0]}` : `${pods.sizes[0]} to ${pods.sizes[1]}`);
  const pairs = [["computing", pods.computing], ["members of each", sizes || "-"], ["agents at work", pods.at_work],
    ["agents free", pods.free], ["owners that wait", pods.waiting]];
  return section("pods", "Pods", facts(pairs.map(([name, value]) => [name, String(value)])),
    pods.problem && h("p", { class: "problem" }, pods.problem),
    pods.rows.length > 0 && h("ul", { class: "pods", "aria-label": "pods" }, pods.rows.map(pod)),
    pods.more > 0 && h("p", { class: "none" }, `${pods.more} more pods are not shown.`));
}
