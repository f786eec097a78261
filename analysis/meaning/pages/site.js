// The pages of a shared set, without a server: all that they show is fetched from this folder. Texts are put in as text, never as HTML.
import { groupsOf, host, json, rowsOf, text } from "./parquet.js";

const MOST_GROUPS = 9; // row groups of activations that are read before it is known whether they are too many
const SHOWN = 5; // top samples
const AROUND = 16; // tokens on either side of a sample's strongest
const BINS = 20;
const VISIBLE = { "\n": "↵", "\r": "␍", "\t": "⇥" };

// ---- elements

const SVG = "http://www.w3.org/2000/svg";
const IN_SVG = new Set(["svg", "rect", "title"]);

function element(name, attributes = {}, ...children) {
  const made = IN_SVG.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(attribute, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const quiet = (...children) => element("p", { class: "quiet" }, ...children);
const small = (...children) => element("p", { class: "quiet small" }, ...children);
const section = (title, ...children) => element("section", { class: "card scroll" }, element("h2", {}, title), ...children);

function table(headings, rows, attributes = {}) {
  const head = headings.map(([title, isNumber]) => element("th", { scope: "col", class: isNumber && "n" }, title));
  const body = rows.map((cells) =>
    element("tr", {}, cells.map((cell, place) => element(place ? "td" : "th", { scope: place ? null : "row", class: headings[place][1] && "n" }, cell ?? "")))
  );
  return element("table", attributes, element("thead", {}, element("tr", {}, head)), element("tbody", {}, body));
}

function bars(counts, titles, label, { size = [480, 96], byRoot = false, classes = "chart" } = {}) {
  const heights = counts.map((count) => (byRoot ? Math.sqrt(count) : count));
  const [width, height] = size;
  const step = width / Math.max(counts.length, 1);
  const fullest = Math.max(...heights) || 1;
  const shapes = heights.map((one, place) =>
    element(
      "rect",
      { x: (place * step).toFixed(1), y: (height - (height * one) / fullest).toFixed(1), width: (step - 1.5).toFixed(1), height: ((height * one) / fullest).toFixed(1) },
      element("title", {}, titles[place])
    )
  );
  return element("svg", { class: classes, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" }, shapes);
}

// ---- numbers, as the explorer writes them

const formats = new Map();

function figure(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  if (!formats.has(digits)) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: false, signDisplay: "negative", roundingMode: "halfEven" };
    formats.set(digits, new Intl.NumberFormat("en", options));
  }
  return formats.get(digits).format(value);
}

const whole = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en"));

function short(value) {
  if (value === null || value === undefined) return "–";
  const [digits, exponent] = Number(value).toExponential(1).split("e");
  if (value !== 0 && (exponent < -4 || exponent >= 2)) {
    return `${Number(digits)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return String(Number(Number(value).toPrecision(2)));
}

// ---- the set

let index;
let prompts; // prompt_id as text -> label, category, and where its BOS is

const absent = (...tables) => {
  const missing = tables.filter((name) => index.absent.includes(name));
  return missing.length ? quiet(`The set has no table ${missing.join(", ")}.`) : null;
};

async function open() {
  index = await json("site/index.json");
  const rows = await rowsOf(index.prompts, index.prompts.groups);
  prompts = new Map(rows.map((row) => [String(row.prompt_id), row]));
  index.shared = new Set(index.saes.map((one) => one.layer).filter((layer, place, all) => all.indexOf(layer) !== place));
}

const nameOf = (sae) => (index.shared.has(sae.layer) ? sae.sae_id : String(sae.layer));
const saeOf = (id) => index.saes.find((one) => one.sae_id === id);

function hashOf(path, asked = {}) {
  const told = Object.entries(asked).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#${path}${told.length ? `?${new URLSearchParams(told)}` : ""}`;
}

const cardOf = (sae, feature_id) => hashOf(`/${sae.layer}/${feature_id}`, { sae: index.shared.has(sae.layer) ? sae.sae_id : "" });

// ---- the list of features

function multiples(here) {
  const one = (sae) => {
    const titles = sae.counts.map((count, place) => `AUROC ${figure(place / sae.counts.length)} to ${figure((place + 1) / sae.counts.length)}: ${whole(count)} features`);
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
          element("span", { class: "quiet small" }, `${whole(sae.n_critical)} critical of ${whole(sae.n_firing)}`)
        ),
        bars(sae.counts, titles, "AUROC of its features, from 0 to 1", { size: [160, 40], byRoot: true, classes: "chart small-chart" })
      )
    );
  };
  const { target, control } = index.labels;
  return element("ul", { class: "multiples", "aria-label": `SAEs: how their features tell ${target} from ${control} prompts` }, index.saes.map(one));
}

function jump(here) {
  const choice = element("select", { name: "sae" }, index.saes.map((sae, place) => element("option", { value: place, selected: here === sae }, nameOf(sae))));
  const number = element("input", { name: "feature_id", inputmode: "numeric", size: "6", required: true, pattern: "[0-9]+", "data-focus": "/" });
  const form = element(
    "form",
    { class: "search card", role: "search" },
    element("label", {}, index.shared.size ? "SAE " : "Layer ", choice),
    element("label", {}, "Feature ", number),
    element("button", { class: "primary" }, "Show")
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = cardOf(index.saes[Number(choice.value)], Number(number.value));
  });
  return form;
}

const COLUMNS = {
  feature: (row) => element("a", { href: cardOf(saeOf(row.sae_id), row.feature_id) }, `${nameOf(saeOf(row.sae_id))}:${row.feature_id}`),
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
  const found = await json(sae ? `site/saes/${index.saes.indexOf(sae)}-features.json` : "site/features.json").catch(() => ({ rows: [], orders: {} }));
  const rows = (found.orders[order] ?? []).map((place) => found.rows[place]);
  const shown = Object.keys(COLUMNS).filter((name) => !(name in KNOWN_BY) || found.rows.some((row) => row[KNOWN_BY[name]] !== null));
  const heading = (name) => {
    const title = index.orders[name] ?? index.labels[name] ?? "Explanation";
    const sorted = name === order;
    const isText = name === "feature" || name === "explanation";
    const link = name in index.orders ? element("a", { href: hashOf("/", { sae: sae?.sae_id, order: name }) }, title, sorted && element("span", { "aria-hidden": "true" }, " ↓")) : title;
    return element("th", { scope: "col", class: !isText && "n", "aria-sort": sorted && "descending" }, link);
  };
  const line = (row) => shown.map((name, place) => element(place ? "td" : "th", { scope: place ? null : "row", class: place && name !== "explanation" && "n" }, COLUMNS[name](row)));
  const { target, control } = index.labels;
  const about =
    (rows.length === index.listed ? `The first ${rows.length} features, by ` : `${rows.length} features, by `) +
    `${order === "auroc" ? "AUROC" : index.orders[order].toLowerCase()}. Critical for: prompts whose minimal sets hold it. Effect: what P(target) falls by without it, over the prompts where that was measured.`;
  const all = sae && element("p", {}, element("a", { href: hashOf("/", { order: asked.get("order") }) }, "Features of all SAEs"));
  return [
    "Features",
    absent("separations"),
    multiples(sae),
    small(`Each picture: features by AUROC, from 0 (${control} only) over ½ to 1 (${target} only); heights are square roots of their numbers.`),
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
            element("table", { "aria-describedby": "list-about" }, element("thead", {}, element("tr", {}, shown.map(heading))), element("tbody", {}, rows.map((row) => element("tr", {}, line(row)))))
          )
        )
      : quiet("No feature is listed."),
  ];
}

// ---- the card of a feature

async function rowsOfFeature(files, sae, feature_id, columns) {
  const parts = await Promise.all(files.map((file) => rowsOf(file, groupsOf(file, feature_id), columns)));
  return parts.flat().filter((row) => row.feature_id === feature_id && row.sae_id === sae.sae_id);
}

const isBos = (row) => prompts.get(String(row.prompt_id))?.bos === row.pos;

// How many tokens by activation, as the question `histogram` counts them.
function counted(firings) {
  const width = firings.reduce((largest, row) => Math.max(largest, row.activation), 0) / BINS;
  const counts = new Array(BINS).fill(0);
  for (const row of firings) counts[Math.min(Math.max(Math.ceil(row.activation / width) - 1, 0), BINS - 1)] += 1;
  return { counts, width };
}

// The prompts on which it fires most, each by its strongest token, as the question `sample_tokens` ranks them.
function strongest(firings) {
  const best = new Map();
  for (const row of firings) {
    const other = best.get(row.prompt_id);
    if (!other || row.activation > other.activation || (row.activation === other.activation && row.pos < other.pos)) best.set(row.prompt_id, row);
  }
  const ranked = [...best.values()].sort((a, b) => b.activation - a.activation || (a.prompt_id < b.prompt_id ? -1 : 1));
  return ranked.slice(0, SHOWN);
}

function visible(token) {
  if (!token.trim()) return [...token].map((letter) => VISIBLE[letter] ?? "␣").join("") || "∅";
  return token.replace(/^ +| +$/g, "");
}

// The text around each of some tokens, with what fires there.
async function samplesOf(top, firings) {
  const ids = new Set(top.map((row) => row.prompt_id));
  const here = new Map(firings.filter((row) => ids.has(row.prompt_id)).map((row) => [`${row.prompt_id}/${row.pos}`, row.activation]));
  const columns = ["prompt_id", "pos", "token", "role"];
  const parts = await Promise.all(
    index.tokens.map((file) => rowsOf(file, file.groups.filter((group) => [...ids].some((id) => groupsOf({ groups: [group] }, id).length)), columns))
  );
  const tokens = parts.flat().filter((row) => ids.has(row.prompt_id));
  return top.map((row) => {
    const near = tokens.filter((one) => one.prompt_id === row.prompt_id && Math.abs(one.pos - row.pos) <= AROUND && one.role !== "bos");
    near.sort((a, b) => a.pos - b.pos);
    const fires = near.map((one) => here.get(`${row.prompt_id}/${one.pos}`) ?? 0);
    const most = Math.max(...fires);
    const strength = (one) => (one > 0 && most > 0 ? Math.min(4, 1 + Math.floor((4 * one) / most)) : 0);
    const shown = near.map((one, place) => [visible(one.token), strength(fires[place]), one.role === "template", one.pos === row.pos]);
    const { label = "", category = null } = prompts.get(String(row.prompt_id)) ?? {};
    return { activation: row.activation, token: shown.find(([, , , isTop]) => isTop)?.[0] ?? "", tokens: shown, label, category };
  });
}

function sampleList(samples) {
  const one = ({ activation, token, tokens, label, category }) =>
    element(
      "li",
      {},
      element("p", { class: "strongest" }, token && element("span", { class: "badge" }, token), " ", element("span", { class: "value" }, figure(activation)), " ", element("span", { class: "quiet" }, category ? `${label} · ${category}` : label)),
      element("p", { class: "text" }, tokens.flatMap(([text, strength, isTemplate, isTop]) => [element("span", { class: `t s${strength}${isTemplate ? " template" : ""}` }, isTop ? element("mark", {}, text) : text), " "]))
    );
  return element("ol", { class: "samples" }, samples.map(one));
}

function logitTable(logits, facts) {
  if (!logits.length) return null;
  const side = (promotes) => logits.filter((row) => row.promotes === promotes).sort((a, b) => a.rank - b.rank).slice(0, 10);
  const [up, down] = [side(true), side(false)];
  const rows = up.map((row, place) => [visible(row.token), figure(row.logit), down[place] ? visible(down[place].token) : "", figure(down[place]?.logit)]);
  return section(
    "Tokens that it writes",
    table([["Promotes"], ["Logit", true], ["Suppresses"], ["Logit", true]], rows),
    small(`Its decoder row through the final norm and the unembedding; skewness ${figure(facts.skewness)}, kurtosis ${figure(facts.kurtosis)}.`)
  );
}

const told = (value) => JSON.parse(value ?? "[]");

function facts_(sae, facts, firing) {
  const rows = [
    ["SAE", element("span", { class: "id" }, sae.sae_id)],
    ["Fires on", `${whole(facts.n_prompts)} prompts, ${whole(facts.n_tokens)} tokens`],
    ["AUROC", `${figure(facts.auroc, 3)} (${index.labels.target} against ${index.labels.control})`],
    ["Mean activation", figure(facts.mean_activation ?? 0, 3)],
    ["Largest", figure(facts.max_activation ?? 0, 3)],
    ["Decoder row", `length ${figure(facts.decoder_norm, 3)}`],
    facts.n_critical !== null && ["Critical for", `${whole(facts.n_critical)} prompts`],
    facts.effect !== null && ["Effect", `P(target) falls by ${figure(facts.effect, 3)} without it, over ${whole(facts.n_effect)} prompts`],
    facts.recovered !== null && ["Recovered", `${figure(facts.recovered)} of the prompts whose audited sets hold it`],
  ].filter(Boolean);
  const list = element("dl", {}, rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const { counts, width } = firing ?? { counts: [], width: 0 };
  if (!counts.some(Boolean)) return section("Statistics", list);
  const titles = counts.map((count, bin) => `${figure(bin * width)} to ${figure((bin + 1) * width)}: ${whole(count)} tokens`);
  const largest = figure(facts.max_activation ?? 0);
  const chart = bars(counts, titles, `Tokens by activation, from 0 to ${largest}`, { classes: "chart values" });
  const axis = element("p", { class: "row quiet small" }, ["0", "activation", largest].map((one) => element("span", {}, one)));
  return section("Statistics", list, chart, axis);
}

async function card(layer, feature_id, id) {
  const sae = id ? saeOf(id) : index.saes.find((one) => one.layer === layer);
  if (!sae) return ["Not found", quiet(`The set has no SAE at layer ${layer}.`)];
  const where = await json(`site/saes/${index.saes.indexOf(sae)}.json`);
  const firings = () => rowsOfFeature(where.activations, sae, feature_id, ["sae_id", "feature_id", "prompt_id", "pos", "activation"]);
  const isMuch = where.activations.flatMap((file) => groupsOf(file, feature_id)).length > MOST_GROUPS;
  const early = isMuch ? null : firings();
  const asked = [rowsOfFeature(where.cards, sae, feature_id), early, rowsOfFeature(where.feature_logits, sae, feature_id, ["sae_id", "feature_id", "promotes", "rank", "token", "logit"])];
  const [[facts], , logits] = await Promise.all(asked);
  const name = `${nameOf(sae)}:${feature_id}`;
  if (!facts) return ["Not found", quiet(`The set has no feature ${name}.`)];
  let firing = facts.firing === null ? null : JSON.parse(facts.firing);
  if (!firing) {
    const outside = (await (early ?? firings())).filter((row) => !isBos(row));
    firing = { ...counted(outside), samples: await samplesOf(strongest(outside), outside) };
  }
  const roles = told(facts.roles);
  const sets = told(facts.sets);
  const categories = told(facts.categories);
  const explanations = told(facts.explanations);
  const title = element(
    "div",
    { class: "row title" },
    element("h1", {}, `Feature ${name}`),
    element(
      "span",
      { class: "row" },
      feature_id > 0 && element("a", { class: "button", href: cardOf(sae, feature_id - 1), "data-key": "ArrowLeft", "aria-label": "The feature before" }, "←"),
      element("a", { class: "button", href: cardOf(sae, feature_id + 1), "data-key": "ArrowRight", "aria-label": "The next feature" }, "→")
    )
  );
  const samples = firing.samples.length ? sampleList(firing.samples) : quiet("It fires on no token but BOS.");
  const left = [
    explanations.length > 0 &&
      section("Explanation", element("ul", { class: "explanations" }, explanations.map((one) => element("li", {}, one.description, " ", element("span", { class: "quiet small" }, `${one.explainer ?? ""} ${one.source}`))))),
    section("Where it fires most", absent("activations") ?? samples, absent("tokens", "prompts")),
  ];
  const right = [
    facts_(sae, facts, firing),
    logitTable(logits, facts) ?? (absent("feature_logits") && section("Tokens that it writes", absent("feature_logits"))),
    section(
      "In the sets of the search",
      sets.length
        ? table([["Condition"], ["Prompts", true], ["Flipped", true], ["Smallest set", true]], sets.map((one) => [one.condition, `${one.n_prompts} of ${one.of_prompts}`, whole(one.n_flipped), whole(one.smallest)]), { class: "long" })
        : (absent("feature_sets", "ablations", "prompts") ?? quiet("No set of the search holds it."))
    ),
    section(
      "Found by the search as",
      roles.length ? table([["Group"], ["Prompts", true]], roles.map((one) => [one.population, whole(one.n_prompts)])) : (absent("populations") ?? quiet("No stage of the search found it."))
    ),
    categories.length > 0 &&
      section(
        "Categories",
        table([["Category"], ["Anywhere", true], ["User’s tokens", true], ["q", true]], categories.map((one) => [one.category, `${one.n_literal} of ${one.n_prompts}`, whole(one.n_user), short(one.q_value)])),
        small("Those on which it fires more than chance lets expect, at a false discovery rate of 5%.")
      ),
  ];
  const columns = element("div", { class: "two" }, element("div", { class: "column" }, left), element("div", { class: "column" }, right));
  return [`Feature ${name}`, title, columns];
}

// ---- conditions, and what the set is

async function conditions() {
  const missing = absent("ablations", "prompts");
  const found = await json("site/conditions.json");
  const { target } = index.labels;
  const flips = (one) => {
    if (!one.n_refused) return "–";
    const meter = element("progress", { max: one.n_refused, value: one.n_flipped, "aria-label": `${one.n_flipped} of ${one.n_refused} flip` });
    return element("span", {}, element("span", { class: "meter", title: `${one.n_flipped} of ${one.n_refused}` }, meter), `${figure((100 * one.n_flipped) / one.n_refused, 0)}%`);
  };
  const levels = (one) => (one.least_k === null ? "" : one.most_k === one.least_k ? String(one.least_k) : `${one.least_k}–${one.most_k}`);
  const rows = found.map((one) => [
    one.condition,
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
  const headings = [["Condition"], ["Control"], ["Prompts", true], ["Answers", true], ["K", true], ["Can flip", true], ["Flip", true], ["P(target)", true], ["of others", true], ["Degenerate", true]];
  const about = `Can flip: answers to prompts on which the unmodified model shows the behaviour. P(target): the mean over ${target} prompts, and over all others.`;
  return ["Conditions", element("div", { class: "card" }, small(about), missing ?? (rows.length ? element("div", { class: "scroll" }, table(headings, rows, { class: "long" })) : quiet("Nothing was asked yet.")))];
}

// The set's card is Markdown that `saelake share` wrote: headings, lists, tables and code, in which all marks of others are escaped.
const unescaped = (line) => line.replace(/&#(\d+);/g, (_, code) => String.fromCodePoint(Number(code)));

const inline = (line) =>
  line.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return element("code", {}, unescaped(part.slice(1, -1)));
    return /^\*\*.+\*\*$/.test(part) ? element("b", {}, unescaped(part.slice(2, -2))) : unescaped(part);
  });

function markdown(lines) {
  const made = [];
  const isOf = { code: /^```/, table: /^\|/, list: /^- /, heading: /^#{1,3} / };
  for (let at = 0; at < lines.length; ) {
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
      const [head, , ...rows] = until((line) => isOf.table.test(line)).map((line) => line.replace(/^\| ?|\s*\|$/g, "").split(/ ?\| ?/));
      made.push(element("div", { class: "scroll" }, table(head.map((one) => [inline(one)]), rows.map((row) => head.map((_, place) => inline(row[place] ?? ""))))));
    } else if (isOf.list.test(lines[at])) {
      const items = until((line) => isOf.list.test(line) || /^ {2}/.test(line)).join("\n").split(/^- /m).slice(1);
      made.push(element("ul", {}, items.map((one) => element("li", {}, inline(one.replace(/\n */g, " ").trim())))));
    } else made.push(element("p", {}, inline(until((line) => line.trim() && !Object.values(isOf).some((kind) => kind.test(line))).join(" "))));
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
  const note = host.sendsWholeFiles && small("This host sends whole files where a part is asked for: pages take longer than they need.");
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
  if (location.hash === "#main") main.focus(); // the link that skips to the content
  else show(false);
});
show(true);
