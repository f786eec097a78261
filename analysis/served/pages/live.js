// The live page: answers appear as they are said, and buttons write edits. Without it the page answers as a whole.
const form = document.getElementById("live");
const edits = document.getElementById("edits");
const problem = document.getElementById("problem");
const fields = () => new URLSearchParams(new FormData(form));
let latest = 0; // an answer that was asked for before the latest one is not shown

function told(one) {
  if ("problem" in one) {
    problem.textContent = one.problem;
    problem.hidden = false;
  }
  for (const part of ["python", "shell"]) if (part in one) document.getElementById(part).textContent = one[part] || "–";
  if (!("side" in one)) return;
  for (const place of document.getElementById(one.side).querySelectorAll("[data-part]")) {
    const value = one[place.dataset.part];
    if (value !== undefined) place.textContent = typeof value === "number" ? value.toFixed(4) : value;
  }
}

async function answer() {
  const mine = ++latest;
  problem.hidden = true;
  for (const place of document.querySelectorAll(".sides [data-part]")) place.textContent = place.dataset.part === "text" ? "" : "–";
  try {
    const reader = (await fetch(form.dataset.answer, { method: "POST", body: fields() })).body
      .pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (mine !== latest) return void reader.cancel();
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) told(JSON.parse(line));
    }
  } catch {
    told({ problem: "The server does not answer: is it still running?" });
  }
}

async function fired() {
  const text = await (await fetch(form.dataset.tokens, { method: "POST", body: fields() })).text();
  const page = new DOMParser().parseFromString(text, "text/html");
  document.getElementById("fired").replaceChildren(...page.getElementById("fired").childNodes);
}

let shown = null; // the prompt whose tokens are shown
async function ask() {
  const answering = answer();
  if (shown !== form.elements.prompt.value) {
    shown = form.elements.prompt.value;
    await answering; // one request computes at a time: the answer comes first
    await fired().catch(() => {});
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
});
document.getElementById("keep").addEventListener("submit", (event) => {
  for (const name of ["prompt", "edits", "max_new_tokens"]) event.target.elements[name].value = form.elements[name].value;
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.edit) {
    const lines = edits.value.split("\n").filter((line) => line.trim());
    const there = lines.indexOf(button.dataset.edit);
    if (there < 0) lines.push(button.dataset.edit);
    else lines.splice(there, 1);
    edits.value = lines.join("\n");
    ask();
  } else if (button?.dataset.at) {
    for (const one of document.querySelectorAll("[id^=at-]")) one.hidden = one.id !== `at-${button.dataset.at}`;
    for (const one of document.querySelectorAll("[data-at]")) one.setAttribute("aria-pressed", String(one === button));
  }
});
if ("atOnce" in form.dataset) ask();
