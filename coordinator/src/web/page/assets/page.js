// The page: what is looked at, the connection, and drawing.

import { h, patch } from "/dom.js";
import { checkpoints, download, operate, say } from "/operate.js";
import { ask, enter, hasToken, onChange } from "/session.js";
import * as view from "/view.js";

const main = document.getElementById("main"), live = document.getElementById("live");
const facts = document.getElementById("facts");
// A coordinator publishes at least so often.
const SILENCE_MS = 30000, AGAIN_MS = 3000;

let stream = null, again = null, data = null, heard = 0, tried = 0, moved = false;
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
    operate,
    kept: { list: data.run ? checkpoints(data.run, draw) : null, download },
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

// A mistake in drawing is no reason to take the connection for lost.
function take(text) {
  heard = Date.now();
  try {
    data = JSON.parse(text);
    draw();
  } catch (error) {
    reportError(error);
  }
}

// The texts of server-sent events. `EventSource` would send no token.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const line = text.slice(0, end).split("\n").find((line) => line.startsWith("data: "));
      text = text.slice(end + 2);
      if (line) yield line.slice(6);
    }
  }
}

async function connect() {
  disconnect();
  tried = Date.now();
  const query = wanted(), mine = new AbortController();
  stream = mine;
  try {
    const answer = await ask(`/api/events${query}`, { signal: mine.signal });
    if (answer.status === 401) return hasToken() || stream !== mine ? undefined : lock();
    if (answer.status === 503) return look(query, mine);
    if (!answer.ok) throw new Error((await answer.text()).trim());
    for await (const text of events(answer.body)) {
      if (stream !== mine) return;
      take(text);
      tell("now", "live");
    }
  } catch (error) {
    if (stream !== mine) return;
    tell("lost", error instanceof TypeError ? lost() : error.message);
  }
  if (stream !== mine) return;
  if (live.className !== "lost") tell("lost", lost());
  again = setTimeout(connect, AGAIN_MS);
}

function disconnect() {
  if (stream) stream.abort();
  clearTimeout(again);
  stream = null;
}

// Nothing is shown without a token.
function lock() {
  const unlock = () => enter("This page shows nothing without a token.");
  data = null;
  heard = 0;
  patch(facts, []);
  patch(main, view.locked(unlock));
  tell("waiting", "a token is needed");
  unlock();
}

// As many pages as may be get events: asks once, and tries again later.
async function look(query, mine) {
  again = setTimeout(connect, AGAIN_MS);
  try {
    const answer = await ask(`/api/state${query}`, { signal: mine.signal });
    const text = await answer.text();
    if (stream !== mine) return;
    if (!answer.ok) return tell("lost", text.trim());
    take(text);
    tell("waiting", "not live: too many pages are open; brought up to date every few seconds");
  } catch {
    if (stream === mine) tell("lost", lost());
  }
}

function lost() {
  return heard ? `nothing heard since ${new Date(heard).toLocaleTimeString([], { hour12: false })}: trying again`
    : "no connection: trying again";
}

window.addEventListener("hashchange", () => {
  for (const id of Object.keys(at)) delete at[id];
  moved = true;
  say("", "");
  data = data && { ...data, run: undefined, search: undefined, missing: undefined };
  connect();
});
window.addEventListener("resize", draw);
// Another token may see more or less.
onChange(connect);
// The place in the page is not a part of what is looked at.
document.querySelector(".skip").onclick = (event) => { event.preventDefault(); main.focus(); };
// A browser has few connections to one server: pages that nobody sees leave theirs to the others.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
setInterval(() => {
  const now = Date.now();
  if (document.hidden || !heard || now - heard <= SILENCE_MS) return;
  tell("lost", lost());
  // A connection that has gone without a word is given up for another one.
  if (now - tried > SILENCE_MS) connect();
}, 1000);
if (!document.hidden) connect();
