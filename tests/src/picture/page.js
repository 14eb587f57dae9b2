"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg";
const SPANS = ["lease", "train", "evaluate", "download", "upload", "offline", "dead", "fault"];
const MARKS = ["accepted", "refused", "started", "killed", "ended", "checkpoint", "fault", "violation"];
const SIDE = 132, AXIS = 26, LANE = 34, SERIES = 74, GAP = 4, LIST = 3000;
const INSIDE = "url(#plot)";
const whole = { from: 0, to: Math.max(1, data.end_ms) };
let view = { ...whole }, cursor = null;
const hidden = new Set();

const svg = document.getElementById("chart");
const tip = document.getElementById("tip");
const colour = (kind) => `var(--${kind})`;
const width = () => Math.max(320, svg.clientWidth);
const x = (ms) => SIDE + ((ms - view.from) / (view.to - view.from)) * (width() - SIDE - 12);
const at = (px) => view.from + ((px - SIDE) / (width() - SIDE - 12)) * (view.to - view.from);

function time(ms) {
  const s = ms / 1000;
  if (s < 60) return s.toFixed(s < 10 ? 3 : 2) + " s";
  const m = Math.floor(s / 60);
  return m < 60 ? `${m}:${(s % 60).toFixed(1).padStart(4, "0")}` : `${Math.floor(m / 60)}:${String(m % 60).padStart(2, "0")} h`;
}

function make(parent, name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

function explain(node, text) {
  node.addEventListener("pointerenter", () => { tip.textContent = text; tip.hidden = false; });
  node.addEventListener("pointerleave", () => { tip.hidden = true; });
}

function step() {
  const aim = (view.to - view.from) / 8, tens = 10 ** Math.floor(Math.log10(aim));
  return [1, 2, 5, 10].map((k) => k * tens).find((s) => s >= aim) || 1;
}

function drawAxis(height) {
  const every = step();
  for (let ms = Math.ceil(view.from / every) * every; ms <= view.to; ms += every) {
    make(svg, "line", { x1: x(ms), x2: x(ms), y1: AXIS, y2: height, stroke: "var(--rule)" });
    make(svg, "text", { x: x(ms), y: AXIS - 8, "text-anchor": "middle", class: "faint" }, time(ms));
  }
  make(svg, "text", { x: 0, y: AXIS - 8, class: "faint" }, `${data.clock} time`);
}

function drawSeries(series, top) {
  const values = series.points.map((p) => p[1]);
  const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-9);
  const y = (v) => top + SERIES - 8 - ((v - low) / (high - low)) * (SERIES - 22);
  make(svg, "text", { x: 0, y: top + 16 }, series.name);
  make(svg, "text", { x: SIDE - 8, y: y(high) + 4, "text-anchor": "end", class: "faint" }, +high.toPrecision(4));
  let path = "", last = null;
  for (const [ms, v] of series.points) {
    if (last !== null) path += `L${x(ms)} ${y(last)}`;
    path += `${path ? "L" : "M"}${x(ms)} ${y(v)}`;
    last = v;
  }
  if (last === null) return;
  path += `L${x(whole.to)} ${y(last)}`;
  make(svg, "path", { d: path, fill: "none", stroke: "var(--train)", "stroke-width": 2, "clip-path": INSIDE });
}

function shape(kind, px, y) {
  if (kind === "accepted") return ["circle", { cx: px, cy: y, r: 3.5 }];
  if (kind === "started") return ["path", { d: `M${px - 4} ${y - 5}L${px + 5} ${y}L${px - 4} ${y + 5}Z` }];
  if (kind === "checkpoint") return ["path", { d: `M${px} ${y - 6}L${px + 5} ${y}L${px} ${y + 6}L${px - 5} ${y}Z` }];
  if (kind === "ended") return ["rect", { x: px - 4, y: y - 4, width: 8, height: 8 }];
  const r = kind === "violation" ? 9 : 5;
  return ["path", { d: `M${px - r} ${y - r}L${px + r} ${y + r}M${px + r} ${y - r}L${px - r} ${y + r}`, "stroke-width": 2.5 }];
}

function drawLane(lane, top) {
  make(svg, "rect", { x: SIDE, y: top + GAP / 2, width: width() - SIDE - 12, height: LANE - GAP, fill: "var(--lane)" });
  make(svg, "text", { x: 0, y: top + LANE / 2 + 4 }, lane.name.length > 18 ? lane.name.slice(0, 17) + "…" : lane.name);
  const group = make(svg, "g", { "clip-path": INSIDE });
  for (const span of lane.spans) {
    if (hidden.has(span.kind) || span.to_ms < view.from || span.from_ms > view.to) continue;
    const thin = span.kind === "lease" || span.kind === "fault";
    const bar = make(group, "rect", {
      x: x(span.from_ms), width: Math.max(1.5, x(span.to_ms) - x(span.from_ms)), rx: 2, fill: colour(span.kind),
      y: span.kind === "fault" ? top + LANE - 7 : top + (thin ? 4 : 9), height: span.kind === "fault" ? 4 : thin ? LANE - 8 : LANE - 18,
      opacity: span.kind === "dead" ? 0.55 : 1,
    });
    explain(bar, `${span.label} · ${time(span.from_ms)} to ${time(span.to_ms)}`);
  }
  for (const mark of lane.marks) {
    if (hidden.has(mark.kind) || mark.at_ms < view.from || mark.at_ms > view.to) continue;
    const [name, attributes] = shape(mark.kind, x(mark.at_ms), top + LANE / 2);
    const stroked = "stroke-width" in attributes;
    const node = make(group, name, { ...attributes, fill: stroked ? "none" : colour(mark.kind), stroke: stroked ? colour(mark.kind) : "var(--paper)" });
    explain(node, `${mark.label} · ${time(mark.at_ms)}`);
  }
}

function draw() {
  svg.replaceChildren();
  const height = AXIS + data.series.length * SERIES + data.lanes.length * LANE + 6;
  svg.setAttribute("height", height);
  const clip = make(make(svg, "defs", {}), "clipPath", { id: "plot" });
  make(clip, "rect", { x: SIDE, y: 0, width: width() - SIDE - 12, height });
  drawAxis(height);
  let top = AXIS;
  for (const series of data.series) { drawSeries(series, top); top += SERIES; }
  for (const lane of data.lanes) { drawLane(lane, top); top += LANE; }
  if (cursor !== null) make(svg, "line", { x1: x(cursor), x2: x(cursor), y1: AXIS, y2: height, stroke: "var(--cursor)", "stroke-width": 1.5, "clip-path": INSIDE });
}

function look(from, to) {
  const span = Math.min(whole.to, Math.max(1, to - from));
  const start = Math.min(Math.max(0, from), whole.to - span);
  view = { from: start, to: start + span };
  draw();
}

function legend() {
  const used = new Set(data.lanes.flatMap((lane) => [...lane.spans, ...lane.marks].map((item) => item.kind)));
  for (const kind of new Set([...SPANS, ...MARKS])) {
    if (!used.has(kind)) continue;
    const button = document.createElement("button");
    const swatch = document.createElement("i");
    swatch.style.background = colour(kind);
    button.append(swatch, kind);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(kind)) hidden.add(kind);
      button.setAttribute("aria-pressed", String(!hidden.has(kind)));
      draw();
    });
    document.getElementById("legend").append(button);
  }
}

function list() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = data.log.filter((e) => words.every((w) => `${e.node} ${e.text}`.toLowerCase().includes(w)));
  const log = document.getElementById("log");
  log.replaceChildren(...fits.slice(0, LIST).map((entry) => {
    const item = document.createElement("li");
    for (const text of [time(entry.at_ms), entry.node, entry.text]) {
      const cell = document.createElement("span");
      cell.textContent = text;
      item.append(cell);
    }
    item.addEventListener("click", () => {
      log.querySelector(".here")?.classList.remove("here");
      item.classList.add("here");
      cursor = entry.at_ms;
      const half = (view.to - view.from) / 2;
      look(entry.at_ms - half, entry.at_ms + half);
    });
    return item;
  }));
  const cut = fits.length > LIST ? `, the first ${LIST} shown` : "";
  document.getElementById("shown").textContent = `${fits.length} of ${data.log.length} events${cut}`;
}

document.getElementById("title").textContent = data.title;
document.getElementById("subtitle").textContent = data.subtitle;
for (const [name, value] of data.facts) {
  const box = document.createElement("div");
  for (const [tag, text] of [["dt", name], ["dd", value]]) box.appendChild(document.createElement(tag)).textContent = text;
  document.getElementById("facts").append(box);
}
svg.addEventListener("wheel", (event) => {
  event.preventDefault();
  const here = at(event.clientX - svg.getBoundingClientRect().left), factor = event.deltaY > 0 ? 1.25 : 0.8;
  look(here - (here - view.from) * factor, here + (view.to - here) * factor);
}, { passive: false });
let grip = null;
svg.addEventListener("pointerdown", (event) => { grip = { px: event.clientX, ...view }; svg.setPointerCapture(event.pointerId); });
svg.addEventListener("pointerup", () => { grip = null; });
svg.addEventListener("pointermove", (event) => {
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 280)}px`;
  tip.style.top = `${event.clientY + 14}px`;
  if (grip === null) return;
  const moved = ((event.clientX - grip.px) / (width() - SIDE - 12)) * (grip.to - grip.from);
  look(grip.from - moved, grip.to - moved);
});
svg.addEventListener("dblclick", () => look(whole.from, whole.to));
document.getElementById("filter").addEventListener("input", list);
addEventListener("resize", draw);
legend();
draw();
list();
