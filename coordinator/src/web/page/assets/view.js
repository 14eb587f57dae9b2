// What is shown: the overview, one run, one search.

import { h } from "/dom.js";
import { bars, curve, spark } from "/chart.js";
import { clock, date, facts, link, section, state, table } from "/parts.js";
import { pods } from "/pods.js";

const percent = (share, isTick) => `${(share * 100).toFixed(isTick ? 0 : 2)} %`;
const figure = (value, isTick) => (isTick ? String(+value.toPrecision(3)) : value.toFixed(4));

function attention(notes) {
  if (!notes.length) return section("attention", "Needs attention", h("p", { class: "well" }, "Nothing: everything does its work."));
  const about = (note) => (note.run ? link("run", note.run) : note.search ? link("search", note.search) : "process");
  return section("attention", "Needs attention", h("ul", { class: "notes" }, notes.map((note) =>
    h("li", { class: note.urgent ? "urgent" : "" },
      h("span", { class: "sign", role: "img", "aria-label": note.urgent ? "urgent" : "note" }, note.urgent ? "!" : "i"),
      h("span", { class: "about" }, about(note)), h("span", { class: "text" }, note.text)))));
}

const RUNS = [
  ["run", (run) => link("run", run.name)],
  ["state", (run) => [state(run.state), run.problem && h("span", { class: "why" }, run.problem)], "wide"],
  ["version", (run) => run.version, "number"],
  ["accuracy", (run) => run.accuracy && [
    h("span", null, run.accuracy), spark(run.spark, `accuracy so far, now ${run.accuracy}`)], "number curved"],
  ["loss", (run) => run.loss, "number"],
  ["updates", (run) => run.rate, "number"],
  ["accepted", (run) => run.accepted, "number"],
  ["refused", (run) => run.refused, "number"],
  ["agents", (run) => run.agents, "number"],
];

const SEARCHES = [
  ["search", (search) => link("search", search.name)],
  ["state", (search) => [state(search.state), search.problem && h("span", { class: "why" }, search.problem)], "wide"],
  ["trials", (search) => search.trials, "number"],
  ["leader", (search) => search.leader && link("run", search.leader)],
  ["metric", (search) => search.metric, "number"],
];

function runs(data) {
  return section("runs", "Runs",
    data.runs.length ? table(RUNS, data.runs, (run) => run.name, "runs") : h("p", { class: "none" }, "No run yet."),
    data.more_runs > 0 && h("p", { class: "none" }, `${data.more_runs} more runs are not shown: see \`runs list\`.`));
}

function searches(data) {
  return section("searches", "Searches", data.searches.length
    ? table(SEARCHES, data.searches, (search) => search.name, "searches")
    : h("p", { class: "none" }, "No search: `search start SEARCH.toml` starts one."));
}

function log(entries, withRun) {
  const items = entries.map((entry) => h("li", null,
    h("time", { datetime: new Date(entry.at_ms).toISOString(), title: new Date(entry.at_ms).toISOString() }, clock(entry.at_ms)),
    h("span", { class: `kind ${entry.kind}` }, entry.kind),
    h("span", { class: "text" }, withRun && entry.run && [link("run", entry.run), ": "], entry.text)));
  return section("log", "Events",
    items.length ? h("ol", { class: "log", tabindex: 0, "aria-label": "events, newest first" }, items)
      : h("p", { class: "none" }, "Nothing has happened since the coordinator was started."));
}

export function overview(data) {
  return [attention(data.notes),
    h("div", { key: "columns", class: "columns" }, h("div", { class: "main" }, runs(data), searches(data)), log(data.log, true))];
}

function head(kind, name, word, problem, figures, buttons) {
  return h("div", { key: "head", class: "head" },
    h("p", { class: "back" }, h("a", { href: "#/" }, "← All runs")),
    h("h2", { id: "subject", tabindex: -1 }, h("span", { class: "label" }, kind), name, " ", state(word)),
    problem && h("p", { class: "problem" }, problem),
    figures && h("dl", { class: "figures" }, figures.filter(([, value]) => value).map(([label, value]) =>
      h("div", { key: label }, h("dt", null, label), h("dd", null, value)))),
    buttons);
}

const AGENTS = [
  ["agent", (agent) => agent.name],
  ["state", (agent) => [state(agent.doing), agent.why && h("span", { class: "why" }, agent.why)], "wide"],
  ["heard", (agent) => agent.heard, "number"],
  ["speed", (agent) => agent.speed, "number"],
  ["stale", (agent) => agent.staleness, "number"],
  ["behind", (agent) => agent.lag, "number"],
  ["loss", (agent) => agent.loss, "number"],
  ["accepted", (agent) => agent.accepted, "number"],
  ["refused", (agent) => agent.refused, "number"],
  ["up", (agent) => agent.up, "number"],
  ["down", (agent) => agent.down, "number"],
  ["device", (agent) => agent.device, "device"],
];

function agents({ counts, rows, more }) {
  return section("agents", "Agents",
    counts.length > 0 && h("p", { class: "counts" }, counts.map(([doing, count]) => h("span", { key: doing }, `${count} ${doing}`))),
    rows.length ? table(AGENTS, rows, (agent) => agent.name, "agents")
      : h("p", { class: "none" }, "No agent: of a run that has ended, the coordinator remembers none in this process."),
    more > 0 && h("p", { class: "none" }, `${more} more agents are not shown: see \`agents list\`.`));
}

function staleness(buckets) {
  let last = buckets.length;
  while (last > 0 && buckets[last - 1] === 0) last -= 1;
  const rows = buckets.slice(0, last).map((count, index) =>
    [index + 1 === buckets.length ? `${index} or more` : String(index), count]).filter(([, count]) => count > 0);
  return section("staleness", "Staleness of merged updates, in versions",
    rows.length ? bars(rows, "merged updates by staleness") : h("p", { class: "none" }, "No update was merged yet."));
}

function refused(reasons) {
  return section("refused", "Refused updates",
    reasons.length ? bars(reasons, "refused updates by reason") : h("p", { class: "none" }, "No update was refused."));
}

function measured(run) {
  const columns = [
    ["after", (row) => row.at],
    [run.is_average ? "average at" : "version", (row) => row.version, "number"],
    ["accuracy", (row) => row.accuracy, "number"],
    ["loss", (row) => row.loss, "number"],
    ["examples", (row) => row.examples + (row.is_partial ? " (in part)" : ""), "number"],
  ];
  return section("measured", "Newest measurements",
    run.measured.length ? table(columns, run.measured, (row) => row.version, "newest measurements") : h("p", { class: "none" }, "None yet."));
}

// Versions whose models are kept, and their files.
function checkpoints(detail, { list, download }) {
  const columns = [
    ["version", (row) => String(row.version)],
    ["taken", (row) => date(row.at_ms), "wide"],
    ["digest", (row) => row.digest],
    ["size", (row) => row.size, "number"],
    ["model", (row) => h("button", { type: "button", "aria-label": `Download version ${row.version}`,
      onclick: () => download(detail, row.version) }, "Download"), "number wide"],
  ];
  const rows = list && list.rows;
  return section("checkpoints", "Checkpoints",
    !list ? h("p", { class: "none" }, "They are being read.")
      : list.problem ? h("p", { class: "problem" }, list.problem)
        : rows.length ? table(columns, rows, (row) => row.version, "checkpoints")
          : h("p", { class: "none" }, "None yet."),
    list && list.more > 0 && h("p", { class: "none" }, `${list.more} older ones are not shown: see \`checkpoint list\`.`),
    h("form", {
      class: "actions", onsubmit: (event) => {
        event.preventDefault();
        download(detail, event.currentTarget.elements.version.value);
      },
    },
    h("label", { for: "version" }, "another version"),
    h("input", { id: "version", name: "version", type: "number", min: 0, step: 1, required: true }),
    h("button", { type: "submit" }, "Download")));
}

// What can be done with a run in its state. The button that pauses is the one that resumes: the focus stays.
function actions(detail, operate) {
  if (!detail.id || !["pending", "running", "paused"].includes(detail.state)) return null;
  const toggle = detail.state === "paused" ? "resume" : "pause";
  const button = (key, verb, kind) => h("button", { key, id: `${key}-run`, type: "button", class: kind,
    onclick: () => operate(detail, verb) }, verb[0].toUpperCase() + verb.slice(1));
  return h("p", { key: "actions", class: "actions", role: "group", "aria-label": `operate ${detail.name}` },
    button("pause", toggle, ""), button("stop", "stop", "danger"));
}

export function run(data, { width, at, move, operate, kept }) {
  const detail = data.run, line = data.runs.find((line) => line.name === detail.name) || {};
  const points = (column) => detail.curve.map((point) => [point[0], point[1], point[column]]);
  const chart = (id, name, column, show) =>
    curve({ id, name, points: points(column), show, width, at: at(id), move: (index) => move(id, index) });
  return [
    head("run", detail.name, detail.state, detail.problem, [
      ["accuracy", line.accuracy], ["loss", line.loss], ["version", line.version === null ? null : String(line.version ?? "")],
      ["updates", line.rate], ["agents connected", line.agents]], actions(detail, operate)),
    h("section", { key: "curves", class: "curves", "aria-label": "curves" },
      chart("accuracy", "Accuracy", 2, percent), chart("loss", "Loss", 3, figure)),
    agents(detail.agents),
    h("div", { key: "halves", class: "halves" }, staleness(detail.staleness), refused(detail.refused)),
    h("div", { key: "rest", class: "halves" }, measured(detail),
      section("words", "In the words of `status`", facts(detail.facts))),
    detail.pods && pods(detail.pods),
    detail.id && checkpoints(detail, kept),
    log(data.log, false),
  ];
}

export function search(data) {
  const detail = data.search;
  const columns = detail.columns.map((name, index) => [name || "why", ([of, cells]) =>
    (index === 0 ? h("a", { href: `#/run/${encodeURIComponent(of)}` }, cells[0]) : index === 1 ? state(cells[1]) : cells[index]),
    index === 1 || !name ? "wide" : index ? "number" : ""]);
  return [
    head("search", detail.name, detail.state, detail.problem),
    section("words", "In the words of `search status`", facts(detail.facts)),
    section("trials", "Trials, from best to worst", detail.trials.length
      ? table(columns, detail.trials, ([of]) => of, "trials") : h("p", { class: "none" }, "No trial has begun.")),
  ];
}

// In the place of everything, where nothing is shown without a token.
export function locked(enter) {
  return [section("locked", "A token is needed",
    h("p", null, "Other machines reach this page: it shows nothing without a token of `anabranch-coordinator page token create`."),
    h("p", { class: "actions" }, h("button", { id: "unlock", type: "button", onclick: enter }, "Enter a token")))];
}

export function missing(text) {
  return [h("div", { key: "head", class: "head" }, h("p", { class: "back" }, h("a", { href: "#/" }, "← All runs")),
    h("h2", { id: "subject", tabindex: -1 }, "Not here"), h("p", { class: "problem" }, text))];
}
