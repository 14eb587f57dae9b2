// What views are made of.

import { h } from "/dom.js";

export const link = (kind, name) => h("a", { href: `#/${kind}/${encodeURIComponent(name)}` }, name);
export const state = (word) => h("span", { class: `state ${word}` }, word);
export const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
export const date = (ms) => new Date(ms).toLocaleString([], { hour12: false, dateStyle: "medium", timeStyle: "medium" });

export function section(id, name, ...content) {
  return h("section", { key: id, id, "aria-labelledby": `${id}-head` }, h("h2", { id: `${id}-head` }, name), content);
}

// A table; on a narrow screen each row is a card. Columns are [name, cell of a row, class].
export function table(columns, rows, key, label) {
  return h("table", { "aria-label": label },
    h("thead", null, h("tr", null, columns.map(([name, , kind]) => h("th", { scope: "col", class: kind }, name)))),
    h("tbody", null, rows.map((row) => h("tr", { key: key(row) }, columns.map(([name, cell, kind], index) => {
      const shown = cell(row), isEmpty = shown === null || shown === undefined || shown === "";
      const props = { class: `${kind || ""}${isEmpty ? " empty" : ""}`, "data-label": name };
      return index ? h("td", props, isEmpty ? "-" : shown) : h("th", { ...props, scope: "row" }, shown);
    })))));
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))));
}
