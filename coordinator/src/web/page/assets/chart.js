// Curves and bars as SVG.

import { h } from "/dom.js";

const HEIGHT = 200, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 24;

// A span of time in its two largest units, as `status` writes it.
export function span(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const total = Math.floor(seconds), d = Math.floor(total / 86400);
  const hours = Math.floor(total / 3600) % 24, m = Math.floor(total / 60) % 60;
  if (d) return `${d} d ${hours} h`;
  if (hours) return `${hours} h ${m} min`;
  return m ? `${m} min ${total % 60} s` : `${total} s`;
}

// A small curve beside a number.
export function spark(values, label) {
  const width = 84, height = 22;
  if (values.length < 2) return null;
  const low = Math.min(...values), high = Math.max(...values);
  const x = (i) => 2 + (i / (values.length - 1)) * (width - 6);
  const y = (v) => height - 3 - ((v - low) / (high - low || 1)) * (height - 6);
  const d = values.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const last = values.length - 1;
  return h("svg", { class: "spark", width, height, role: "img", "aria-label": label },
    h("path", { d, class: "line" }), h("circle", { cx: x(last), cy: y(values[last]), r: 2.5, class: "dot" }));
}

// About five round values between two. Of values that differ by their last bits alone there are none.
export function ticks(low, high) {
  const aim = (high - low) / 5, tens = 10 ** Math.floor(Math.log10(aim));
  const step = [1, 2, 5, 10].map((k) => k * tens).find((s) => s >= aim * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  if (!Number.isSafeInteger(first)) return [];
  const all = [];
  for (let i = 0; i <= 10 && (first + i) * step <= high + step * 1e-9; i++) all.push((first + i) * step);
  return all;
}

const STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400];

// Round moments of a time axis.
function moments(from, to, most) {
  const step = STEPS.find((s) => (to - from) / s <= most) || Math.ceil((to - from) / most / 86400) * 86400;
  const all = [];
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) all.push(t);
  return all;
}

function moment(seconds) {
  if (seconds === 0) return "0";
  if (seconds % 86400 === 0) return `${seconds / 86400} d`;
  if (seconds % 3600 === 0) return `${seconds / 3600} h`;
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${(seconds % 3600) / 60} min`;
  if (seconds % 60 === 0) return `${seconds / 60} min`;
  return seconds > 60 ? `${Math.floor(seconds / 60)} min ${seconds % 60} s` : `${seconds} s`;
}

// A curve over time. Points are [seconds, version, value]. `at` is the point that the reader is at, or null.
export function curve({ id, name, points, show, width, at, move }) {
  const title = h("h3", { id: `${id}-name` }, name);
  if (!points.length) {
    return h("figure", { key: id },
      title, h("p", { class: "none" }, "Nothing is measured yet: an agent with --eval-shard measures the model."));
  }
  const values = points.map((p) => p[2]).filter(Number.isFinite);
  let low = Math.min(...values), high = Math.max(...values);
  // Values that differ by rounding alone are drawn as equal ones.
  const isFlat = high - low <= Math.abs(high) * 1e-9;
  const pad = (isFlat ? Math.abs(high) * 0.05 : (high - low) * 0.08) || 0.05;
  [low, high] = [Math.max(0, low - pad), high + pad];
  const from = points[0][0], to = Math.max(points[points.length - 1][0], from + 1);
  const x = (t) => LEFT + ((t - from) / (to - from)) * (width - LEFT - RIGHT);
  const y = (v) => TOP + (1 - (v - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const drawn = points.filter((p) => Number.isFinite(p[2]));
  const d = drawn.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[2]).toFixed(1)}`).join("");
  const last = points.length - 1, shown = at === null ? last : Math.min(at, last), point = points[shown];
  const said = `version ${point[1]}, after ${span(point[0])}: ${show(point[2])}`;
  const go = (index) => move(index >= last ? null : Math.max(0, index));
  const nearest = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const time = from + ((event.clientX - box.left - LEFT) / (width - LEFT - RIGHT)) * (to - from);
    go(points.reduce((best, p, i) => Math.abs(p[0] - time) < Math.abs(points[best][0] - time) ? i : best, 0));
  };
  const keys = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
  return h("figure", { key: id },
    title,
    h("svg", {
      class: "curve", width, height: HEIGHT, tabindex: 0, role: "img", "aria-labelledby": `${id}-name ${id}-said`,
      onpointermove: nearest, onpointerleave: () => move(null),
      onkeydown: (event) => {
        if (!(event.key in keys)) return;
        event.preventDefault();
        go(shown + keys[event.key]);
      },
    },
    ticks(low, high).map((v) => h("g", { key: v },
      h("line", { x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v), class: "rule" }),
      h("text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, show(v, true)))),
    moments(from, to, Math.max(2, Math.floor(width / 110))).map((t) =>
      h("text", { key: `at-${t}`, x: x(t), y: HEIGHT - 6, "text-anchor": x(t) > width - 40 ? "end" : "middle" }, moment(t))),
    h("path", { d, class: "line" }),
    at !== null && h("line", { x1: x(point[0]), x2: x(point[0]), y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" }),
    Number.isFinite(point[2]) && h("circle", { cx: x(point[0]), cy: y(point[2]), r: 4, class: "dot" })),
    h("figcaption", { id: `${id}-said`, "aria-live": at === null ? "off" : "polite" }, said));
}

// Bars with a name before and a number behind: [name, number].
export function bars(rows, label) {
  const most = Math.max(...rows.map((row) => row[1]), 1);
  return h("ul", { class: "bars", "aria-label": label }, rows.map(([name, number]) =>
    h("li", { key: name },
      h("span", { class: "name" }, name),
      h("svg", { width: "100%", height: 12, "aria-hidden": "true" },
        h("rect", { x: 0, y: 1, height: 10, width: `${Math.max(number ? 0.5 : 0, (number / most) * 100)}%`, rx: 2 })),
      h("span", { class: "number" }, number.toLocaleString("en-US")))));
}
