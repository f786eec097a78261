-- Which features could stand in for the critical ones of a prompt: they fire on it, in the same layer, and are no candidates.
--
-- One row a critical feature that fires (of any minimal set of the prompt) and a feature that could be ablated instead. cost is
-- how far their largest activations lie apart, in whole factors of `similarity` (0 within it), plus a random number below 1: the
-- cheapest is any of the similar. Activations on BOS count only for features that fire nowhere else. The random number depends on
-- seed, the prompt's number in its study, layer and both features only, so it is the same everywhere.
--
-- $prompts prompts: the prompt_ids
-- $pool integer = 200: features a layer, by cosine with either direction, that count as candidates and are left out
-- $similarity number = 2: the factor
-- $seed integer = 0: seed of the random numbers
with critical as (
    select distinct prompt_id, layer, sae_id, feature_id
    from critical_features
    where method = 'minimal' and n_tokens > 0 and list_contains($prompts, prompt_id)
),

ranked as (
    select
        sae_id, feature_id,
        row_number() over (partition by direction, sae_id order by cosine desc, feature_id) as rank
    from alignments
),

left_out as (
    select sae_id, feature_id
    from ranked
    where rank <= $pool
    union
    select sae_id, feature_id
    from critical
),

searched as (
    select distinct prompt_id, sae_id
    from critical
),

firing as (
    select
        a.prompt_id, a.layer, a.sae_id, a.feature_id,
        coalesce(max(a.activation) filter (where t.role <> 'bos'), max(a.activation)) as activation
    from activations as a
    semi join searched as s on s.prompt_id = a.prompt_id and s.sae_id = a.sae_id
    join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
    group by a.prompt_id, a.layer, a.sae_id, a.feature_id
),

others as (
    select f.prompt_id, f.sae_id, f.feature_id, f.activation
    from firing as f
    anti join left_out as l on l.sae_id = f.sae_id and l.feature_id = f.feature_id
),

-- md5, not hash(): DuckDB may change its hash from one version to the next
pairs as (
    select
        c.prompt_id, c.layer, c.sae_id, c.feature_id,
        o.feature_id as other_feature_id,
        floor(abs(ln(o.activation / f.activation)) / ln($similarity)) as n_factors,
        md5(concat_ws('/', $seed, c.prompt_id & 4294967295, c.layer, c.feature_id, o.feature_id)) as lot
    from critical as c
    join firing as f on f.prompt_id = c.prompt_id and f.sae_id = c.sae_id and f.feature_id = c.feature_id
    join others as o on o.prompt_id = c.prompt_id and o.sae_id = c.sae_id
)

select
    prompt_id, layer, sae_id, feature_id, other_feature_id,
    n_factors
    + (row_number() over (partition by prompt_id, sae_id, feature_id order by lot, other_feature_id) - 1)
    / count(*) over (partition by prompt_id, sae_id, feature_id) as cost
from pairs
order by prompt_id, layer, sae_id, feature_id, cost, other_feature_id
