// The card of a feature: how it fires is counted from activations; what several tables tell was written with the set.
import { bars, breakable, element, quiet, section, small, table } from "./elements.js";
import { PARTS, firingOf, rowsOfFeature, visible } from "./firing.js";
import { figure, short, whole } from "./numbers.js";
import { groupsOf, json } from "./parquet.js";
import { absent, cardOf, index, nameOf, saeOf } from "./set.js";

const MOST_GROUPS = 9; // row groups of activations that are read before it is known whether they are too many

function sampleList(samples, about) {
  const one = ({ activation, token, tokens, label, category }, place) =>
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
        element("span", { class: "quiet" }, about(label, category, place)),
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

function effectList(effects) {
  const one = ({ label, text, p_clean, p_target, flipped }) =>
    element(
      "li",
      {},
      element(
        "p",
        { class: "row" },
        element("span", {}, text ? shortened(text) : quietly(`a ${label} prompt`)),
        element(
          "span",
          { class: "value" },
          `${figure(p_clean, 3)} → ${figure(p_target, 3)}`,
          flipped && [" ", element("span", { class: "badge" }, "flips")],
        ),
      ),
    );
  return section(
    "Ablated alone",
    element(
      "p",
      {},
      "P(target) falls by ",
      element("b", {}, figure(effects.mean_fall, 3)),
      ` in the mean over ${whole(effects.n_prompts)} prompts; ${whole(effects.n_flipped)} flip.`,
    ),
    element("ul", { class: "pairs" }, effects.prompts.map(one)),
    small("Answers are not shown here; the table ablations has those that are shared."),
  );
}

const shortened = (text) => (text.length > 90 ? `${text.slice(0, 90).replace(/\s+\S*$/, "")}…` : text);
const quietly = (text) => element("span", { class: "quiet" }, text);

function edges(title, found, headings, cells, ...notes) {
  if (!found.length) return null;
  const link = (one) => {
    const sae = saeOf(one.sae_id);
    return sae ? element("a", { href: cardOf(sae, one.feature_id) }, `${nameOf(sae)}:${one.feature_id}`) : `${one.sae_id}:${one.feature_id}`;
  };
  return section(
    title,
    table(
      [["Feature"], ...headings.map((heading) => [heading, true])],
      found.map((one) => [link(one), ...cells(one)]),
    ),
    ...notes,
  );
}

const backups = (title, found) =>
  edges(title, found, ["Prompts", "Alone"], (one) => [whole(one.n_prompts), whole(one.n_alone)]);

const wakings = (title, found) =>
  edges(title, found, ["Prompts", "By chance", "q"], (one) => [
    `${one.n_woken} of ${one.n_prompts}`,
    figure(one.expected, 1),
    short(one.q_value),
  ]);

function density(counted, here) {
  if (here === null) return [];
  const titles = counted.map(
    ([low, high, n]) => `10^${figure(low)} to 10^${figure(high)} of the tokens: ${whole(n)} features`,
  );
  const label = "Features of this SAE by the share of tokens on which they fire; this one is marked";
  const ends = ["1 in 10⁶ tokens", "all"];
  return [
    element("h2", {}, "Density"),
    bars(
      counted.map(([, , n]) => n),
      titles,
      label,
      { byRoot: true, marked: Number(here), classes: "chart densities" },
    ),
    element(
      "p",
      { class: "row quiet small" },
      ends.map((one) => element("span", {}, one)),
    ),
    small("Features of the SAE by the share of tokens on which they fire; this one’s bin is marked."),
  ];
}

function statistics(sae, facts, firing, densities) {
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
  const spread = density(densities, facts.density);
  if (!counts.some(Boolean)) return section("Statistics", list, spread);
  const titles = counts.map((count, bin) => `${figure(bin * width)} to ${figure((bin + 1) * width)}: ${whole(count)} tokens`);
  const largest = figure(facts.max_activation ?? 0);
  const chart = bars(counts, titles, `Tokens by activation, from 0 to ${largest}`, { classes: "chart values" });
  const axis = element(
    "p",
    { class: "row quiet small" },
    ["0", "activation", largest].map((one) => element("span", {}, one)),
  );
  return section("Statistics", list, chart, axis, spread);
}

export async function card(layer, feature_id, id) {
  const sae = id ? saeOf(id) : index.saes.find((one) => one.layer === layer);
  if (!sae) return ["Not found", quiet(`The set has no SAE ${id ?? `at layer ${layer}`}.`)];
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
  const firing = facts.firing === null ? await firingOf(await (early ?? firings())) : JSON.parse(facts.firing);
  const roles = told(facts.roles);
  const sets = told(facts.sets);
  const categories = told(facts.categories);
  const explanations = told(facts.explanations);
  const notTold = absent("backups", "waking_edges", "decoder_cosines", "taxonomy", "explanations");
  const title = element(
    "div",
    { class: "row title" },
    element("h1", {}, `Feature ${name}`),
    element(
      "span",
      { class: "row" },
      sae.public &&
        element("a", { class: "button", href: `${sae.public}/${feature_id}`, rel: "noreferrer noopener" }, "Neuronpedia ↗"),
      feature_id > 0 &&
        element(
          "a",
          { class: "button", href: cardOf(sae, feature_id - 1), "data-key": "ArrowLeft", "aria-label": "The feature before" },
          "←",
        ),
      feature_id + 1 < sae.width &&
        element(
          "a",
          { class: "button", href: cardOf(sae, feature_id + 1), "data-key": "ArrowRight", "aria-label": "The next feature" },
          "→",
        ),
    ),
  );
  const samples = firing.samples.length
    ? sampleList(firing.samples, (label, category) => (category ? `${label} · ${category}` : label))
    : quiet("It fires on no token but BOS.");
  const effects = facts.effects === null ? null : JSON.parse(facts.effects);
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
    effects && effectList(effects),
    section("Where it fires most", absent("activations") ?? samples, absent("tokens", "prompts")),
    firing.quantiles.length > 0 &&
      section(
        "From weak to strong",
        small("One token of each fifth of its activations. Top samples alone make a feature look clearer than it is."),
        sampleList(
          firing.quantiles.map(([, sample]) => sample),
          (label, _, place) => `part ${firing.quantiles[place][0]} of ${PARTS} · ${label}`,
        ),
      ),
  ];
  const right = [
    statistics(sae, facts, firing, where.densities),
    logitTable(logits, facts) ?? (absent("feature_logits") && section("Tokens that it writes", absent("feature_logits"))),
    section(
      "In the sets of the search",
      sets.length
        ? table(
            [["Condition"], ["Prompts", true], ["Flipped", true], ["Smallest set", true]],
            sets.map((one) => [
              breakable(one.condition),
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
    backups("Stands in for it when it is ablated", told(facts.backed)),
    backups("It stands in for", told(facts.backs)),
    wakings("Ablating it wakes", told(facts.wakes)),
    wakings("It is woken by ablating", told(facts.woken)),
    edges(
      "Nearest decoder rows",
      told(facts.nearest),
      ["Cosine"],
      (one) => [figure(one.cosine, 3)],
      small("Of the candidates that the study compares."),
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
    notTold && section("Not in this set", notTold),
  ];
  const columns = element(
    "div",
    { class: "two" },
    element("div", { class: "column" }, left),
    element("div", { class: "column" }, right),
  );
  return [`Feature ${name}`, title, columns];
}
