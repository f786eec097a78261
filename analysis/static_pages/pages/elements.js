// What pages are made of. Texts are put in as text, never as HTML.
const SVG = "http://www.w3.org/2000/svg";
const IN_SVG = new Set(["svg", "rect", "title"]);

export function element(name, attributes = {}, ...children) {
  const made = IN_SVG.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(attribute, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// A name that may go on in the next line after each underscore.
export const breakable = (name) => name.split(/(?<=_)/).flatMap((part, place) => (place ? [element("wbr"), part] : [part]));

export const quiet = (...children) => element("p", { class: "quiet" }, ...children);
export const small = (...children) => element("p", { class: "quiet small" }, ...children);
export const section = (title, ...children) =>
  element("section", { class: "card scroll" }, element("h2", {}, title), ...children);

export function table(headings, rows, attributes = {}) {
  const head = headings.map(([title, isNumber]) =>
    [title].flat().some(Boolean) ? element("th", { scope: "col", class: isNumber && "n" }, title) : element("td"),
  );
  const body = rows.map((cells) =>
    element(
      "tr",
      {},
      cells.map((cell, place) =>
        element(place ? "td" : "th", { scope: place ? null : "row", class: headings[place][1] && "n" }, cell ?? ""),
      ),
    ),
  );
  return element("table", attributes, element("thead", {}, element("tr", {}, head)), element("tbody", {}, body));
}

export function bars(counts, titles, label, { size = [480, 96], byRoot = false, marked = null, classes = "chart" } = {}) {
  const heights = counts.map((count) => (byRoot ? Math.sqrt(count) : count));
  const [width, height] = size;
  const step = width / Math.max(counts.length, 1);
  const fullest = Math.max(...heights) || 1;
  const shapes = heights.map((one, place) =>
    element(
      "rect",
      {
        x: (place * step).toFixed(1),
        y: (height - (height * one) / fullest).toFixed(1),
        width: (step - 1.5).toFixed(1),
        height: ((height * one) / fullest).toFixed(1),
        class: place === marked && "marked",
      },
      element("title", {}, titles[place]),
    ),
  );
  return element(
    "svg",
    { class: classes, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" },
    shapes,
  );
}
