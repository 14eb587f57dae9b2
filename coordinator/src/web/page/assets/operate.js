// What an operator has done: pause, resume, stop, and models as files.

import { ask, enter, hasToken } from "/session.js";

const part = (name) => document.getElementById(name);
const told = part("told"), dialog = part("confirm");

// Shows an answer, and has it read aloud.
export function say(kind, text) {
  told.className = kind;
  told.textContent = text;
}

// Asks whether something is meant that cannot be undone.
function confirmed(name, text, yes) {
  part("confirm-name").textContent = name;
  part("confirm-text").textContent = text;
  part("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => { dialog.onclose = () => answer(dialog.returnValue === "yes"); });
}
part("confirm-no").onclick = () => dialog.close("");
part("confirm-yes").onclick = () => dialog.close("yes");

async function sent(path, options) {
  try {
    const answer = await ask(path, options);
    if (answer.ok) return answer;
    say("refused", (await answer.text()).trim());
  } catch {
    say("refused", "the coordinator does not answer; look at the state before you try again");
  }
  return null;
}

// Pauses, resumes or stops a run.
export async function operate({ id, name }, verb) {
  if (!hasToken() && !(await enter(`To ${verb} ${name}, enter a token that operates.`))) return;
  if (verb === "stop" && !(await confirmed(`Stop ${name}?`,
    "This ends the run for good: its result is the newest version. To go on later, pause it instead.", "Stop the run"))) return;
  say("waiting", `${name}: ${verb} is asked for`);
  const answer = await sent(`/api/runs/${id}/${verb}`, { method: "POST" });
  if (!answer) return;
  try {
    say("done", `${name}: ${(await answer.text()).trim()}`);
  } catch {
    say("refused", "the answer was cut off; look at the state");
  }
  if (verb === "stop") (part("subject") || part("main")).focus({ preventScroll: true });
}

// Fetches a model, and hands it to the browser as a file.
export async function download({ id, name }, version) {
  if (!hasToken() && !(await enter(`To download a model of ${name}, enter a token.`))) return;
  say("waiting", `${name}: version ${version} is fetched`);
  const answer = await sent(`/api/runs/${id}/model?version=${encodeURIComponent(version)}`);
  if (!answer) return;
  try {
    const blob = await answer.blob(), link = document.createElement("a");
    const [, file] = (answer.headers.get("content-disposition") || "").match(/filename="([^"]+)"/) || [];
    link.download = file || `${name}.safetensors`;
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say("done", `${link.download}: ${blob.size.toLocaleString("en-US")} bytes`);
  } catch {
    say("refused", "the model was cut off on its way; try again");
  }
}

// The list of a run's checkpoints, fetched anew when there is a newer one.
const list = { run: null, newest: null, shown: null };

export function checkpoints({ id, checkpoint }, draw) {
  if (id && (list.run !== id || list.newest !== checkpoint)) {
    if (list.run !== id) list.shown = null;
    [list.run, list.newest] = [id, checkpoint];
    load(id, draw);
  }
  return list.run === id ? list.shown : null;
}

async function load(id, draw) {
  let shown;
  try {
    const answer = await ask(`/api/runs/${id}/checkpoints`);
    shown = answer.ok ? await answer.json() : { problem: (await answer.text()).trim() };
  } catch {
    shown = { problem: "the coordinator does not answer" };
  }
  if (list.run !== id) return;
  list.shown = shown;
  if (shown.problem) setTimeout(() => { if (list.shown === shown) list.run = null; }, 5000);
  draw();
}
