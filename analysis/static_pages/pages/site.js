// The pages of a shared set, without a server: all that they show is fetched from this folder.
import { card } from "./card.js";
import { bars, breakable, element, quiet, small, table } from "./elements.js";
import { figure, short, whole } from "./numbers.js";
import { host, json, text } from "./parquet.js";
import { absent, cardOf, hashOf, index, nameOf, open, saeOf } from "./set.js";

// ---- the list of features

function multiples(here) {
  const one = (sae) => {
    const titles = sae.counts.map(
      (count, place) =>
        `AUROC ${figure(place / sae.counts.length)} to ${figure((place + 1) / sae.counts.length)}: ${whole(count)} features`,
    );
    return element(
      "li",
      {},
      element(
        "a",
        { href: hashOf("/", { sae: sae.sae_id }), "aria-current": here === sae && "true" },
        element(
          "span",
          { class: "row" },
          element("b", {}, index.shared.has(sae.layer) ? sae.sae_id : `Layer ${sae.layer}`),
          element("span", { class: "quiet small" }, `${whole(sae.n_critical)} critical of ${whole(sae.n_firing)}`),
        ),
        bars(sae.counts, titles, "AUROC of its features, from 0 to 1", {
          size: [160, 40],
          byRoot: true,
          classes: "chart small-chart",
        }),
      ),
    );
  };
  const { target, control } = index.labels;
  return element(
    "ul",
    { class: "multiples", "aria-label": `SAEs: how their features tell ${target} from ${control} prompts` },
    index.saes.map(one),
  );
}

function jump(here) {
  const choice = element(
    "select",
    { name: "sae" },
    index.saes.map((sae, place) => element("option", { value: place, selected: here === sae }, nameOf(sae))),
  );
  const number = element("input", {
    name: "feature_id",
    inputmode: "numeric",
    size: "6",
    required: true,
    pattern: "[0-9]+",
    "data-focus": "/",
  });
  const form = element(
    "form",
    { class: "search card", role: "search" },
    element("label", {}, index.shared.size ? "SAE " : "Layer ", choice),
    element("label", {}, "Feature ", number),
    element("button", { class: "primary" }, "Show"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = cardOf(index.saes[Number(choice.value)], Number(number.value));
  });
  return form;
}

const COLUMNS = {
  feature: (row) =>
    element("a", { href: cardOf(saeOf(row.sae_id), row.feature_id) }, `${nameOf(saeOf(row.sae_id))}:${row.feature_id}`),
  critical: (row) => whole(row.n_critical),
  auroc: (row) => figure(row.auroc, 3),
  effect: (row) => element("span", { title: row.n_effect ? `over ${row.n_effect} prompts` : null }, figure(row.effect, 3)),
  recovered: (row) => figure(row.recovered),
  q: (row) => element("span", { title: row.category }, short(row.q)),
  prompts: (row) => whole(row.n_prompts),
  target: (row) => whole(row.n_target),
  control: (row) => whole(row.n_control),
  largest: (row) => figure(row.max_activation ?? 0),
  explanation: (row) => (row.explanation ?? "").slice(0, 160),
};
const KNOWN_BY = { effect: "effect", recovered: "recovered", q: "q", explanation: "explanation" };

async function features(asked) {
  const sae = asked.get("sae") ? saeOf(asked.get("sae")) : null;
  const order = asked.get("order") in index.orders ? asked.get("order") : "critical";
  const missing = absent("saes", "features");
  if (missing) return ["Features", missing];
  const found = await json(sae ? `site/saes/${index.saes.indexOf(sae)}-features.json` : "site/features.json").catch(() => ({
    rows: [],
    orders: {},
  }));
  const rows = (found.orders[order] ?? []).map((place) => found.rows[place]);
  const shown = Object.keys(COLUMNS).filter(
    (name) => !(name in KNOWN_BY) || found.rows.some((row) => row[KNOWN_BY[name]] !== null),
  );
  const heading = (name) => {
    const title = index.orders[name] ?? index.labels[name] ?? "Explanation";
    const sorted = name === order;
    const isText = name === "feature" || name === "explanation";
    const link =
      name in index.orders
        ? element(
            "a",
            { href: hashOf("/", { sae: sae?.sae_id, order: name }) },
            title,
            sorted && element("span", { "aria-hidden": "true" }, " ↓"),
          )
        : title;
    return element("th", { scope: "col", class: !isText && "n", "aria-sort": sorted && "descending" }, link);
  };
  const line = (row) =>
    shown.map((name, place) =>
      element(
        place ? "td" : "th",
        { scope: place ? null : "row", class: place && name !== "explanation" && "n" },
        COLUMNS[name](row),
      ),
    );
  const { target, control } = index.labels;
  const about =
    (rows.length === index.listed ? `The first ${rows.length} features, by ` : `${rows.length} features, by `) +
    `“${index.orders[order]}”. ` +
    "Critical for: prompts whose minimal sets hold it. " +
    "Effect: what P(target) falls by without it, over the prompts where that was measured.";
  const all = sae && element("p", {}, element("a", { href: hashOf("/", { order: asked.get("order") }) }, "Features of all SAEs"));
  return [
    "Features",
    absent("separations"),
    multiples(sae),
    small(
      `Each picture: features by AUROC, from 0 (${control} only) over ½ to 1 (${target} only); ` +
        "heights are square roots of their numbers.",
    ),
    jump(sae),
    rows.length
      ? element(
          "div",
          { class: "card" },
          all,
          element("p", { class: "quiet small", id: "list-about" }, about),
          element(
            "div",
            { class: "scroll" },
            element(
              "table",
              { "aria-describedby": "list-about" },
              element("thead", {}, element("tr", {}, shown.map(heading))),
              element(
                "tbody",
                {},
                rows.map((row) => element("tr", {}, line(row))),
              ),
            ),
          ),
        )
      : quiet("No feature is listed."),
  ];
}

// ---- conditions, and what the set is

async function conditions() {
  const missing = absent("ablations", "prompts");
  const found = await json("site/conditions.json");
  const { target } = index.labels;
  const flips = (one) => {
    if (!one.n_refused) return "–";
    const meter = element("progress", {
      max: one.n_refused,
      value: one.n_flipped,
      "aria-label": `${one.n_flipped} of ${one.n_refused} flip`,
    });
    return element(
      "span",
      {},
      element("span", { class: "meter", title: `${one.n_flipped} of ${one.n_refused}` }, meter),
      `${figure((100 * one.n_flipped) / one.n_refused, 0)}%`,
    );
  };
  const levels = (one) =>
    one.least_k === null ? "" : one.most_k === one.least_k ? String(one.least_k) : `${one.least_k}–${one.most_k}`;
  const rows = found.map((one) => [
    breakable(one.condition),
    one.control ?? "",
    whole(one.n_prompts),
    whole(one.n_answers),
    levels(one),
    whole(one.n_refused),
    flips(one),
    figure(one.p_target, 3),
    figure(one.p_control, 3),
    whole(one.n_degenerate),
  ]);
  const headings = [
    ["Condition"],
    ["Control"],
    ["Prompts", true],
    ["Answers", true],
    ["K", true],
    ["Can flip", true],
    ["Flip", true],
    ["P(target)", true],
    ["of others", true],
    ["Degenerate", true],
  ];
  const about =
    "Can flip: answers to prompts on which the unmodified model shows the behaviour. " +
    `P(target): the mean over ${target} prompts, and over all others.`;
  return [
    "Conditions",
    element(
      "div",
      { class: "card" },
      small(about),
      missing ??
        (rows.length
          ? element("div", { class: "scroll" }, table(headings, rows, { class: "long" }))
          : quiet("Nothing was asked yet.")),
    ),
  ];
}

// The set's card is Markdown that `saelake share` wrote: headings, lists, tables and code; what others wrote is escaped.
const unescaped = (line) => line.replace(/&#(\d+);/g, (_, code) => String.fromCodePoint(Number(code)));

const inline = (line) =>
  line.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return element("code", {}, unescaped(part.slice(1, -1)));
    return /^\*\*.+\*\*$/.test(part) ? element("b", {}, unescaped(part.slice(2, -2))) : unescaped(part);
  });

function markdown(lines) {
  const made = [];
  const isOf = { code: /^```/, table: /^\|/, list: /^- /, heading: /^#{1,3} / };
  for (let at = 0; at < lines.length;) {
    const until = (goesOn) => {
      const first = at;
      while (at < lines.length && goesOn(lines[at])) at += 1;
      return lines.slice(first, at);
    };
    if (!lines[at].trim()) at += 1;
    else if (isOf.heading.test(lines[at])) {
      const [marks, ...words] = lines[at++].split(" ");
      made.push(element(`h${marks.length}`, {}, inline(words.join(" "))));
    } else if (isOf.code.test(lines[at])) {
      at += 1;
      made.push(element("pre", {}, until((line) => !isOf.code.test(line)).join("\n")));
      at += 1;
    } else if (isOf.table.test(lines[at])) {
      const [head, , ...rows] = until((line) => isOf.table.test(line)).map((line) =>
        line.replace(/^\| ?|\s*\|$/g, "").split(/ ?\| ?/),
      );
      made.push(
        element(
          "div",
          { class: "scroll" },
          table(
            head.map((one) => [inline(one)]),
            rows.map((row) => head.map((_, place) => inline(row[place] ?? ""))),
          ),
        ),
      );
    } else if (isOf.list.test(lines[at])) {
      const items = until((line) => isOf.list.test(line) || /^ {2}/.test(line))
        .join("\n")
        .split(/^- /m)
        .slice(1);
      made.push(
        element(
          "ul",
          {},
          items.map((one) => element("li", {}, inline(one.replace(/\n */g, " ").trim()))),
        ),
      );
    } else
      made.push(
        element("p", {}, inline(until((line) => line.trim() && !Object.values(isOf).some((kind) => kind.test(line))).join(" "))),
      );
  }
  return made;
}

async function about() {
  const lines = (await text("README.md")).replace(/^---\n.*?\n---\n/s, "").split("\n");
  return ["About", element("div", { class: "card" }, markdown(lines))];
}

// ---- which page is shown

const main = document.getElementById("main");
let newest = 0;

async function pageOf(path, asked) {
  const found = /^\/(\d{1,9})\/(\d{1,9})$/.exec(path);
  if (found) return ["features", await card(Number(found[1]), Number(found[2]), asked.get("sae"))];
  if (path === "/conditions") return ["conditions", await conditions()];
  if (path === "/about") return ["about", await about()];
  return ["features", await features(asked)];
}

async function show(isFirst) {
  const mine = ++newest;
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  main.setAttribute("aria-busy", "true");
  let place = "";
  let page;
  try {
    if (!index) await open();
    [place, page] = await pageOf(path, new URLSearchParams(query));
  } catch (error) {
    page = ["That did not work", element("p", { class: "problem", role: "alert" }, error.message)];
  }
  if (mine !== newest) return; // another page was asked for meanwhile
  const [title, ...content] = page;
  const hasTitle = content.some((one) => one && (one.matches("h1") || one.querySelector("h1")));
  const note =
    host.sendsWholeFiles && small("This host sends whole files where a part is asked for: pages take longer than they need.");
  main.replaceChildren(...[!hasTitle && element("h1", {}, title), ...content, note].filter(Boolean));
  main.removeAttribute("aria-busy");
  document.title = `${title} of ${index?.study ?? document.title}`;
  for (const link of document.querySelectorAll("[data-place]")) {
    if (link.dataset.place === place) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!isFirst) {
    main.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

window.addEventListener("hashchange", () => {
  if (location.hash === "#main")
    main.focus(); // the link that skips to the content
  else show(false);
});
show(true);
