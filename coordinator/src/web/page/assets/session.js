// The operator's token: in the memory of this page alone, and in the header of each request.

import { h, patch } from "/dom.js";

const part = (name) => document.getElementById(name);
const dialog = part("ask"), field = part("ask-field"), problem = part("ask-problem"), who = part("who");

let token = null, owner = null, entered = null, answerTo = null, changed = () => {};

// Calls this when another token, or none, is used.
export function onChange(call) {
  changed = call;
}

export const hasToken = () => token !== null;

function send(path, secret, options) {
  const headers = secret === null ? {} : { Authorization: `Bearer ${secret}` };
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
}

// Fetches with the token. One that is not good any more is forgotten.
export async function ask(path, options = {}) {
  const used = token, answer = await send(path, used, options);
  if (answer.status === 401 && used !== null && used === token) use(null, null);
  return answer;
}

function use(secret, whose) {
  [token, owner] = [secret, whose];
  show();
  changed();
}

function show() {
  patch(who, owner ? [
    h("span", { class: "label" }, "token"), `${owner.name || owner.id}, to ${owner.permission} `,
    h("button", { key: "forget", type: "button", onclick: () => use(null, null) }, "Forget it"),
  ] : [h("button", { key: "enter", type: "button", onclick: () => enter("") }, "Use a token")]);
}

// Asks for a token. Says whether one is used now.
export function enter(why) {
  if (!entered) {
    entered = new Promise((answer) => { answerTo = answer; });
    part("ask-why").textContent = why;
    problem.textContent = "";
    dialog.showModal();
    field.focus();
  }
  return entered;
}

part("ask-form").onsubmit = async (event) => {
  event.preventDefault();
  const secret = field.value.trim();
  problem.textContent = "";
  try {
    if (!/^[!-~]+$/.test(secret)) throw new Error("a token has letters, digits and one hyphen");
    const answer = await send("/api/token", secret);
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const whose = await answer.json();
    if (!dialog.open) return;
    use(secret, whose);
    dialog.close();
  } catch (error) {
    problem.textContent = error instanceof TypeError ? "the coordinator does not answer" : error.message;
    field.focus();
  }
};
part("ask-cancel").onclick = () => dialog.close();
dialog.onclose = () => {
  field.value = "";
  entered = null;
  answerTo(hasToken());
};
show();
