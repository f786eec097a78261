// Keys of the explorer: / goes to the search, arrows to the page before and the next. Every page works without it.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const field = document.querySelector(`[data-focus="${CSS.escape(event.key)}"]`);
  if (field) {
    field.focus();
    field.select();
    event.preventDefault();
  } else {
    document.querySelector(`[data-key="${CSS.escape(event.key)}"]:not(:disabled)`)?.click();
  }
});

// What scrolls and holds nothing that a key reaches is reached itself: some browsers do that alone.
const REACHED = "a, button, input, select, textarea, summary";
const scrolls = (one) => one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1;
new ResizeObserver(() => {
  for (const one of document.querySelectorAll(".scroll")) {
    if (!scrolls(one) || one.querySelector(REACHED)) {
      one.removeAttribute("tabindex");
      continue;
    }
    const heading = one.querySelector("h2") ?? one.closest("section, main")?.querySelector("h1, h2");
    Object.assign(one, { tabIndex: 0, role: "region", ariaLabel: heading?.textContent ?? "Table" });
  }
}).observe(document.body);

// The console: an answer takes its place in the page, and what runs can be cancelled. Files are left to the browser.
const ask = document.getElementById("ask");
if (ask) {
  const cancel = document.getElementById("cancel");
  const result = document.getElementById("result");
  const post = (path, fields) => fetch(path, { method: "POST", body: new URLSearchParams(fields) });

  ask.addEventListener("submit", async (event) => {
    const fields = new FormData(ask, event.submitter);
    if (fields.get("as") !== "table") return;
    event.preventDefault();
    cancel.hidden = false;
    result.setAttribute("aria-busy", "true");
    try {
      const answer = await (await post(ask.action, fields)).text();
      result.replaceChildren(...new DOMParser().parseFromString(answer, "text/html").getElementById("result").childNodes);
    } catch {
      result.textContent = "The server does not answer: is it still running?";
    }
    cancel.hidden = true;
    result.removeAttribute("aria-busy");
  });
  cancel.addEventListener("click", () => post(ask.dataset.cancel, { ticket: ask.elements.ticket.value }));
  ask.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask.requestSubmit(ask.querySelector("button.primary"));
    if (event.key === "Escape" && !cancel.hidden) cancel.click();
  });
  result.addEventListener("change", () => ask.requestSubmit(ask.querySelector("button.primary")));
}
