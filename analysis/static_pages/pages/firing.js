// How a feature fires, counted from its activations: a histogram, the top samples, and one token of each part.
import { md5 } from "./md5.js";
import { groupsOf, rowsOf } from "./parquet.js";
import { index, prompts } from "./set.js";

const SHOWN = 5; // top samples
const AROUND = 16; // tokens on either side of a sample's strongest
const BINS = 20;
export const PARTS = 5; // of its activations, from weak to strong
const VISIBLE = { "\n": "↵", "\r": "␍", "\t": "⇥" };

export async function rowsOfFeature(files, sae, feature_id, columns) {
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

// One token of each part of its activations, as the question `quantile_tokens` draws them.
function drawn(firings) {
  const ordered = [...firings].sort(
    (a, b) => a.activation - b.activation || (a.prompt_id === b.prompt_id ? a.pos - b.pos : a.prompt_id < b.prompt_id ? -1 : 1),
  );
  const found = new Map();
  ordered.forEach((row, place) => {
    const quantile = 1 + Math.floor((place * PARTS) / ordered.length);
    const prompt = prompts.get(String(row.prompt_id));
    if (!prompt?.label) return;
    const lot = md5(`${prompt.prompt_hash}/${row.pos}`);
    const other = found.get(quantile);
    if (!other || lot < other.lot || (lot === other.lot && row.prompt_id < other.row.prompt_id)) found.set(quantile, { lot, row });
  });
  return [...found];
}

export function visible(token) {
  if (!token.trim()) return [...token].map((letter) => VISIBLE[letter] ?? "␣").join("") || "∅";
  return token.replace(/^ +| +$/g, "");
}

// The text around each of some tokens, with what fires there.
async function samplesOf(chosen, firings) {
  const ids = new Set(chosen.map((row) => row.prompt_id));
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
  return chosen.map((row) => {
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

// How it fires on all tokens but BOS.
export async function firingOf(firings) {
  const outside = firings.filter((row) => !isBos(row));
  const [top, parts] = [strongest(outside), drawn(outside)];
  const samples = await samplesOf([...top, ...parts.map(([, { row }]) => row)], outside);
  return {
    ...counted(outside),
    samples: samples.slice(0, top.length),
    quantiles: parts.map(([quantile], place) => [quantile, samples[top.length + place]]),
  };
}
