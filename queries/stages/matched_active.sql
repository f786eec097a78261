-- Which features could stand in for the critical ones of a prompt: they are of the same SAE, fire where these fire and about as
-- strongly, and are not candidates: neither the first of each SAE by cosine nor the prompt's own, its top_k_attribution features
-- and its critical ones.
--
-- One row per critical feature that fires (of any minimal set of the prompt) and a feature that could be ablated instead: overlap is
-- the share of the critical feature's activation that lies on tokens on which the other one fires too, ratio the larger of both
-- largest activations by the smaller, the other's on these tokens only. A critical feature that none comes near enough to has no
-- row. BOS counts only for features that fire nowhere else. cost is below 1, the place of the other one among all that come near
-- the critical feature there, in a random order that depends on seed, the prompt's place in its run, layer and both features only.
--
-- $prompts prompts: the prompt_ids
-- $pool integer = 200: features of each SAE, by cosine with either direction, that count as candidates and are left out
-- $similarity number = 2: the largest ratio
-- $min_overlap number = 0.5: the least overlap
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

candidates as (
    select distinct sae_id, feature_id
    from ranked
    where rank <= $pool
),

own as (
    select a.prompt_id, s.sae_id, s.feature_id
    from ablations as a
    join feature_sets as s on s.set_id = a.set_id
    where
        a.method = 'top_k' and a.part = 'attribution' and a.control is null
        and list_contains($prompts, a.prompt_id)
    union
    select prompt_id, sae_id, feature_id
    from critical
),

searched as (
    select distinct prompt_id, sae_id
    from critical
),

firing as (
    select
        a.prompt_id, a.sae_id, a.feature_id, a.pos, a.activation,
        t.role = 'bos' as is_bos,
        bool_and(t.role = 'bos') over (partition by a.prompt_id, a.sae_id, a.feature_id) as on_bos_only
    from activations as a
    semi join searched as s on s.prompt_id = a.prompt_id and s.sae_id = a.sae_id
    join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
),

counted as (
    select prompt_id, sae_id, feature_id, pos, activation
    from firing
    where not is_bos or on_bos_only
),

sources as (
    select
        c.prompt_id, c.layer, c.sae_id, c.feature_id, f.pos, f.activation,
        sum(f.activation) over same as whole,
        max(f.activation) over same as largest
    from critical as c
    join counted as f on f.prompt_id = c.prompt_id and f.sae_id = c.sae_id and f.feature_id = c.feature_id
    window same as (partition by c.prompt_id, c.sae_id, c.feature_id)
),

others as (
    select f.prompt_id, f.sae_id, f.feature_id, f.pos, f.activation
    from counted as f
    anti join candidates as c on c.sae_id = f.sae_id and c.feature_id = f.feature_id
    anti join own as o on o.prompt_id = f.prompt_id and o.sae_id = f.sae_id and o.feature_id = f.feature_id
),

met as (
    select
        s.prompt_id, s.layer, s.sae_id, s.feature_id,
        o.feature_id as other_feature_id,
        sum(s.activation) / any_value(s.whole) as overlap,
        exp(abs(ln(max(o.activation) / any_value(s.largest)))) as ratio
    from sources as s
    join others as o on o.prompt_id = s.prompt_id and o.sae_id = s.sae_id and o.pos = s.pos
    group by s.prompt_id, s.layer, s.sae_id, s.feature_id, o.feature_id
),

-- md5, not hash(): DuckDB may change its hash from one version to the next
near as (
    select
        *,
        md5(concat_ws('/', $seed, prompt_id & 4294967295, layer, feature_id, other_feature_id)) as lot
    from met
    where overlap >= $min_overlap and ratio <= $similarity
)

select
    prompt_id, layer, sae_id, feature_id, other_feature_id, overlap, ratio,
    (row_number() over (partition by prompt_id, sae_id, feature_id order by lot, other_feature_id) - 1)
    / count(*) over (partition by prompt_id, sae_id, feature_id) as cost
from near
order by prompt_id, layer, sae_id, feature_id, cost, other_feature_id
