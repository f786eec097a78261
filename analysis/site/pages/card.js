// The card of a feature: how it fires is counted here, from activations; what several tables tell was written with the set.
import { bars, element, quiet, section, small, table } from "./elements.js";
import { figure, short, whole } from "./numbers.js";
import { groupsOf, json, rowsOf } from "./parquet.js";
import { absent, cardOf, index, nameOf, prompts, saeOf } from "./set.js";

const MOST_GROUPS = 9; // row groups of activations that are read before it is known whether they are too many
const SHOWN = 5; // top samples
const AROUND = 16; // tokens on either side of a sample's strongest
const BINS = 20;
const VISIBLE = { "\n": "↵", "\r": "␍", "\t": "⇥" };

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
    if (!other || row.activation > other.activation || (row.activation === other.activation && row.pos < other.pos))
      best.set(row.prompt_id, row);
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
  const here = new Map(
    firings.filter((row) => ids.has(row.prompt_id)).map((row) => [`${row.prompt_id}/${row.pos}`, row.activation]),
  );
  const columns = ["prompt_id", "pos", "token", "role"];
  const parts = await Promise.all(
    index.tokens.map((file) =>
      rowsOf(
        file,
        file.groups.filter((group) => [...ids].some((id) => groupsOf({ groups: [group] }, id).length)),
        columns,
      ),
    ),
  );
  const tokens = parts.flat().filter((row) => ids.has(row.prompt_id));
  return top.map((row) => {
    const near = tokens.filter(
      (one) => one.prompt_id === row.prompt_id && Math.abs(one.pos - row.pos) <= AROUND && one.role !== "bos",
    );
    near.sort((a, b) => a.pos - b.pos);
    const fires = near.map((one) => here.get(`${row.prompt_id}/${one.pos}`) ?? 0);
    const most = Math.max(...fires);
    const strength = (one) => (one > 0 && most > 0 ? Math.min(4, 1 + Math.floor((4 * one) / most)) : 0);
    const shown = near.map((one, place) => [
      visible(one.token),
      strength(fires[place]),
      one.role === "template",
      one.pos === row.pos,
    ]);
    const { label = "", category = null } = prompts.get(String(row.prompt_id)) ?? {};
    return { activation: row.activation, token: shown.find(([, , , isTop]) => isTop)?.[0] ?? "", tokens: shown, label, category };
  });
}

function sampleList(samples) {
  const one = ({ activation, token, tokens, label, category }) =>
    element(
      "li",
      {},
      element(
        "p",
        { class: "strongest" },
        token && element("span", { class: "badge" }, token),
        " ",
        element("span", { class: "value" }, figure(activation)),
        " ",
        element("span", { class: "quiet" }, category ? `${label} · ${category}` : label),
      ),
      element(
        "p",
        { class: "text" },
        tokens.flatMap(([text, strength, isTemplate, isTop]) => [
          element("span", { class: `t s${strength}${isTemplate ? " template" : ""}` }, isTop ? element("mark", {}, text) : text),
          " ",
        ]),
      ),
    );
  return element("ol", { class: "samples" }, samples.map(one));
}

function logitTable(logits, facts) {
  if (!logits.length) return null;
  const side = (promotes) =>
    logits
      .filter((row) => row.promotes === promotes)
      .sort((a, b) => a.rank - b.rank)
      .slice(0, 10);
  const [up, down] = [side(true), side(false)];
  const rows = up.map((row, place) => [
    visible(row.token),
    figure(row.logit),
    down[place] ? visible(down[place].token) : "",
    figure(down[place]?.logit),
  ]);
  return section(
    "Tokens that it writes",
    table([["Promotes"], ["Logit", true], ["Suppresses"], ["Logit", true]], rows),
    small(
      "Its decoder row through the final norm and the unembedding; " +
        `skewness ${figure(facts.skewness)}, kurtosis ${figure(facts.kurtosis)}.`,
    ),
  );
}

const told = (value) => JSON.parse(value ?? "[]");

function statistics(sae, facts, firing) {
  const rows = [
    ["SAE", element("span", { class: "id" }, sae.sae_id)],
    ["Fires on", `${whole(facts.n_prompts)} prompts, ${whole(facts.n_tokens)} tokens`],
    ["AUROC", `${figure(facts.auroc, 3)} (${index.labels.target} against ${index.labels.control})`],
    ["Mean activation", figure(facts.mean_activation ?? 0, 3)],
    ["Largest", figure(facts.max_activation ?? 0, 3)],
    ["Decoder row", `length ${figure(facts.decoder_norm, 3)}`],
    facts.n_critical !== null && ["Critical for", `${whole(facts.n_critical)} prompts`],
    facts.effect !== null && [
      "Effect",
      `P(target) falls by ${figure(facts.effect, 3)} without it, over ${whole(facts.n_effect)} prompts`,
    ],
    facts.recovered !== null && ["Recovered", `${figure(facts.recovered)} of the prompts whose audited sets hold it`],
  ].filter(Boolean);
  const list = element(
    "dl",
    {},
    rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
  const { counts, width } = firing ?? { counts: [], width: 0 };
  if (!counts.some(Boolean)) return section("Statistics", list);
  const titles = counts.map((count, bin) => `${figure(bin * width)} to ${figure((bin + 1) * width)}: ${whole(count)} tokens`);
  const largest = figure(facts.max_activation ?? 0);
  const chart = bars(counts, titles, `Tokens by activation, from 0 to ${largest}`, { classes: "chart values" });
  const axis = element(
    "p",
    { class: "row quiet small" },
    ["0", "activation", largest].map((one) => element("span", {}, one)),
  );
  return section("Statistics", list, chart, axis);
}

export async function card(layer, feature_id, id) {
  const sae = id ? saeOf(id) : index.saes.find((one) => one.layer === layer);
  if (!sae) return ["Not found", quiet(`The set has no SAE at layer ${layer}.`)];
  const where = await json(`site/saes/${index.saes.indexOf(sae)}.json`);
  const firings = () =>
    rowsOfFeature(where.activations, sae, feature_id, ["sae_id", "feature_id", "prompt_id", "pos", "activation"]);
  const isMuch = where.activations.flatMap((file) => groupsOf(file, feature_id)).length > MOST_GROUPS;
  const early = isMuch ? null : firings();
  const asked = [
    rowsOfFeature(where.cards, sae, feature_id),
    early,
    rowsOfFeature(where.feature_logits, sae, feature_id, ["sae_id", "feature_id", "promotes", "rank", "token", "logit"]),
  ];
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
      feature_id > 0 &&
        element(
          "a",
          { class: "button", href: cardOf(sae, feature_id - 1), "data-key": "ArrowLeft", "aria-label": "The feature before" },
          "←",
        ),
      element(
        "a",
        { class: "button", href: cardOf(sae, feature_id + 1), "data-key": "ArrowRight", "aria-label": "The next feature" },
        "→",
      ),
    ),
  );
  const samples = firing.samples.length ? sampleList(firing.samples) : quiet("It fires on no token but BOS.");
  const left = [
    explanations.length > 0 &&
      section(
        "Explanation",
        element(
          "ul",
          { class: "explanations" },
          explanations.map((one) =>
            element(
              "li",
              {},
              one.description,
              " ",
              element("span", { class: "quiet small" }, `${one.explainer ?? ""} ${one.source}`),
            ),
          ),
        ),
      ),
    section("Where it fires most", absent("activations") ?? samples, absent("tokens", "prompts")),
  ];
  const right = [
    statistics(sae, facts, firing),
    logitTable(logits, facts) ?? (absent("feature_logits") && section("Tokens that it writes", absent("feature_logits"))),
    section(
      "In the sets of the search",
      sets.length
        ? table(
            [["Condition"], ["Prompts", true], ["Flipped", true], ["Smallest set", true]],
            sets.map((one) => [
              one.condition,
              `${one.n_prompts} of ${one.of_prompts}`,
              whole(one.n_flipped),
              whole(one.smallest),
            ]),
            { class: "long" },
          )
        : (absent("feature_sets", "ablations", "prompts") ?? quiet("No set of the search holds it.")),
    ),
    section(
      "Found by the search as",
      roles.length
        ? table(
            [["Group"], ["Prompts", true]],
            roles.map((one) => [one.population, whole(one.n_prompts)]),
          )
        : (absent("populations") ?? quiet("No stage of the search found it.")),
    ),
    categories.length > 0 &&
      section(
        "Categories",
        table(
          [["Category"], ["Anywhere", true], ["User’s tokens", true], ["q", true]],
          categories.map((one) => [one.category, `${one.n_literal} of ${one.n_prompts}`, whole(one.n_user), short(one.q_value)]),
        ),
        small("Those on which it fires more than chance lets expect, at a false discovery rate of 5%."),
      ),
  ];
  const columns = element(
    "div",
    { class: "two" },
    element("div", { class: "column" }, left),
    element("div", { class: "column" }, right),
  );
  return [`Feature ${name}`, title, columns];
}
