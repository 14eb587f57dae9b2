// The page: what is looked at, the connection, and drawing.

import { h, patch } from "/dom.js";
import * as view from "/view.js";

const main = document.getElementById("main"), live = document.getElementById("live");
const facts = document.getElementById("facts");
// A coordinator publishes at least so often.
const SILENCE_MS = 30000, AGAIN_MS = 3000;

let source = null, again = null, data = null, heard = 0, moved = false;
const at = {};

// `#/run/NAME`, `#/search/NAME`, or everything.
function wanted() {
  const [, kind, name] = location.hash.match(/^#\/(run|search)\/(.+)$/) || [];
  return kind ? `?${kind}=${name}` : "";
}

function tell(kind, text) {
  patch(live, [text]);
  if (live.className !== kind) live.className = kind;
}

function draw() {
  if (!data) return;
  const inner = main.clientWidth, isWide = inner >= 760;
  const look = {
    width: Math.max(240, isWide ? Math.floor((inner - 24) / 2) - 34 : inner - 34),
    at: (id) => at[id] ?? null,
    move: (id, index) => { if ((at[id] ?? null) !== index) { at[id] = index; draw(); } },
  };
  patch(main, (data.run ? view.run(data, look) : data.search ? view.search(data)
    : data.missing ? view.missing(data.missing) : view.overview(data)).filter(Boolean));
  patch(facts, data.facts.map(([name, value]) =>
    h("li", { key: name }, h("span", { class: "label" }, name), value)));
  const urgent = data.notes.filter((note) => note.urgent).length;
  const subject = data.run || data.search;
  document.title = `${urgent ? `(${urgent}) ` : ""}${subject ? `${subject.name} - ` : ""}Anabranch`;
  if (moved) {
    moved = false;
    window.scrollTo(0, 0);
    (document.getElementById("subject") || main).focus({ preventScroll: true });
  }
}

function take(text) {
  data = JSON.parse(text);
  heard = Date.now();
  draw();
}

function connect() {
  disconnect();
  const query = wanted();
  source = new EventSource(`/api/events${query}`);
  source.addEventListener("state", (event) => { take(event.data); tell("now", "live"); });
  source.onerror = () => {
    if (source && source.readyState === EventSource.CLOSED) look(query);
    else tell("lost", lost());
  };
}

function disconnect() {
  if (source) source.close();
  clearTimeout(again);
  source = null;
}

// Events are refused or have gone: asks once, and tries again later.
async function look(query) {
  disconnect();
  again = setTimeout(connect, AGAIN_MS);
  try {
    const answer = await fetch(`/api/state${query}`);
    if (!answer.ok) return tell("lost", (await answer.text()).trim());
    if (query === wanted()) take(await answer.text());
    tell("waiting", "not live: too many pages are open; brought up to date every few seconds");
  } catch {
    tell("lost", lost());
  }
}

function lost() {
  return heard ? `nothing heard since ${new Date(heard).toLocaleTimeString([], { hour12: false })}: trying again`
    : "no connection: trying again";
}

window.addEventListener("hashchange", () => {
  for (const id of Object.keys(at)) delete at[id];
  moved = true;
  data = data && { ...data, run: undefined, search: undefined, missing: undefined };
  connect();
});
window.addEventListener("resize", draw);
// The place in the page is not a part of what is looked at.
document.querySelector(".skip").onclick = (event) => { event.preventDefault(); main.focus(); };
// A browser has few connections to one server: pages that nobody sees leave theirs to the others.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
setInterval(() => {
  if (!document.hidden && heard && Date.now() - heard > SILENCE_MS) tell("lost", lost());
}, 1000);
if (!document.hidden) connect();
