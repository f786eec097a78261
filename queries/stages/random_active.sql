-- Random features that fire on a prompt and are not candidates, in random order: controls for the candidates (R15).
--
-- Each draw orders the features of every SAE anew; its first K of each (rank <= K) are a control of that size. The order
-- depends on seed, draw, the prompt's place in its run, layer and feature_id only, so it is the same everywhere. Candidates are
-- the first of each SAE by cosine, and the prompt's own: its top_k_attribution features and its minimal sets. What fires on BOS
-- alone is left out.
--
-- $prompts prompts: the prompt_ids
-- $pool integer = 200: features of each SAE, by cosine with either direction, that count as candidates and are left out
-- $exclude_layers layers? = null: layers to leave out
-- $draws integer = 1: number of draws
-- $seed integer = 0: seed of all draws
with ranked as (
    select
        sae_id, feature_id,
        row_number() over (partition by direction, sae_id order by cosine desc, feature_id) as rank
    from alignments
),

candidates as (
    select distinct sae_id, feature_id
    from ranked
    where rank <= $pool
),

-- by attribution, or found in all that fires (minimal.pool = "active"): these need not be among the first by cosine
own as (
    select distinct a.prompt_id, s.sae_id, s.feature_id
    from ablations as a
    join feature_sets as s on s.set_id = a.set_id
    where
        ((a.method = 'top_k' and a.part = 'attribution') or (a.method = 'minimal' and a.part is null))
        and a.control is null and list_contains($prompts, a.prompt_id)
),

firing as (
    select distinct a.prompt_id, a.layer, a.sae_id, a.feature_id
    from activations as a
    join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
    where
        list_contains($prompts, a.prompt_id)
        and t.role <> 'bos'
        and ($exclude_layers is null or not list_contains($exclude_layers, a.layer))
),

outside as (
    select f.prompt_id, f.layer, f.sae_id, f.feature_id
    from firing as f
    anti join candidates as c on c.sae_id = f.sae_id and c.feature_id = f.feature_id
    anti join own as o on o.prompt_id = f.prompt_id and o.sae_id = f.sae_id and o.feature_id = f.feature_id
),

-- md5, not hash(): DuckDB may change its hash from one version to the next
drawn as (
    select
        o.prompt_id, d.draw, o.layer, o.sae_id, o.feature_id,
        md5(concat_ws('/', $seed, d.draw, o.prompt_id & 4294967295, o.layer, o.feature_id)) as lot
    from outside as o
    cross join range($draws) as d(draw)
)

select
    prompt_id, draw, layer, sae_id, feature_id,
    row_number() over (partition by prompt_id, draw, sae_id order by lot, feature_id) as rank
from drawn
order by prompt_id, draw, layer, sae_id, rank
