"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// An answer's rows as objects, for a chart.
function objects(answer) {
  return answer.rows.map((row) => Object.fromEntries(answer.columns.map((name, i) => [name, row[i]])));
}

// RFC 4180; nested values are JSON, null is empty.
function csv(answer) {
  const cell = (value) => {
    const text = value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [answer.columns, ...answer.rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

for (const link of document.querySelectorAll("a[data-answer]")) {
  const answer = data.answers[link.dataset.answer];
  link.download = `${answer.name}.csv`;
  link.addEventListener("click", () => {
    link.href = "data:text/csv;charset=utf-8," + encodeURIComponent(csv(answer));
  });
}

const drawn = Object.entries(data.figures).map(([id, figure]) => {
  const place = document.getElementById(id);
  if (!place) return null;
  const rows = figure.rows ?? objects(data.answers[figure.answer]);
  const spec = { ...figure.spec, datasets: { rows } };
  return vegaEmbed(place, spec, { renderer: "svg", actions: false, ast: false }).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error}`;
  });
});
Promise.all(drawn).then(() => document.documentElement.classList.add("drawn"));
