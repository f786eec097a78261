// Keys for the annotation page: digits toggle categories, Enter saves, u undoes, arrows move. The page works without it.
"use strict";

const form = document.getElementById("answer");
const choices = [...form.querySelectorAll("input[type=checkbox]")];
const none = choices.find((choice) => "none" in choice.dataset);

// "None" and categories exclude each other.
form.addEventListener("change", (event) => {
  if (!event.target.checked) return;
  for (const choice of choices) {
    if (event.target === none ? choice !== none : choice === none) choice.checked = false;
  }
});

let isSent = false;
form.addEventListener("submit", (event) => {
  if (isSent) event.preventDefault(); // a key held down saves once
  isSent = true;
});
window.addEventListener("pageshow", () => { isSent = false; });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const categories = choices.filter((choice) => choice !== none);
  const choice = event.key === "0" ? none : categories[Number(event.key) - 1];
  if (/^[0-9]$/.test(event.key) && choice) {
    choice.click();
    choice.focus();
    event.preventDefault();
  } else if (event.key === "Enter" && !event.target.closest("a, button")) {
    form.requestSubmit();
    event.preventDefault();
  } else {
    document.querySelector(`[data-key="${CSS.escape(event.key)}"]:not(:disabled)`)?.click();
  }
});
