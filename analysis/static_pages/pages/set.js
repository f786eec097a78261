// The set: its study, its SAEs, its prompts, and the addresses of its pages.
import { quiet } from "./elements.js";
import { json, rowsOf } from "./parquet.js";

export let index;
export let prompts; // prompt_id as text -> label, category, and where its BOS is

export const absent = (...tables) => {
  const missing = tables.filter((name) => index.absent.includes(name));
  return missing.length ? quiet(`The set has no table ${missing.join(", ")}.`) : null;
};

export async function open() {
  index = await json("site/index.json");
  const rows = await rowsOf(index.prompts, index.prompts.groups);
  prompts = new Map(rows.map((row) => [String(row.prompt_id), row]));
  index.shared = new Set(index.saes.map((one) => one.layer).filter((layer, place, all) => all.indexOf(layer) !== place));
}

export const nameOf = (sae) => (index.shared.has(sae.layer) ? sae.sae_id : String(sae.layer));
export const saeOf = (id) => index.saes.find((one) => one.sae_id === id);

export function hashOf(path, asked = {}) {
  const told = Object.entries(asked).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#${path}${told.length ? `?${new URLSearchParams(told)}` : ""}`;
}

export const cardOf = (sae, feature_id) =>
  hashOf(`/${sae.layer}/${feature_id}`, { sae: index.shared.has(sae.layer) ? sae.sae_id : "" });
