-- Which of the given features fire on the same prompts, or on the same tokens, pair by pair.
--
-- n_a and n_b are the prompts (or tokens, see unit) on which each fires, n_both those on which both do, and
-- jaccard = n_both / (n_a + n_b - n_both).
-- Each pair stands once, a before b by layer and feature_id; pairs that never fire together are left out.
--
-- $features features: which features
-- $unit prompt|token = prompt: what two features fire on together
-- $pairs any|same_layer|across_layers = any: which pairs
-- $min_jaccard number = 0: only pairs with at least this Jaccard index
-- $bos boolean = false: whether BOS tokens count
with bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos' and not $bos
),

firings as (
    select distinct a.layer, a.sae_id, a.feature_id, a.prompt_id, if($unit = 'token', a.pos, -1) as pos
    from $features(activations) as a
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
),

numbered as (
    select
        layer, sae_id, feature_id, count(*) as n,
        row_number() over (order by layer, sae_id, feature_id) as number
    from firings
    group by layer, sae_id, feature_id
),

sides as (
    select f.prompt_id, f.pos, n.number, n.layer
    from firings as f
    join numbered as n on n.sae_id = f.sae_id and n.feature_id = f.feature_id
),

both_fire as (
    select a.number as number_a, b.number as number_b, count(*) as n_both
    from sides as a
    join sides as b on b.prompt_id = a.prompt_id and b.pos = a.pos and b.number > a.number
    where
        case $pairs
            when 'same_layer' then a.layer = b.layer
            when 'across_layers' then a.layer <> b.layer
            else true
        end
    group by a.number, b.number
),

measured as (
    select
        a.layer as layer_a, a.sae_id as sae_id_a, a.feature_id as feature_id_a,
        b.layer as layer_b, b.sae_id as sae_id_b, b.feature_id as feature_id_b,
        a.n as n_a, b.n as n_b, both_fire.n_both,
        both_fire.n_both / (a.n + b.n - both_fire.n_both) as jaccard
    from both_fire
    join numbered as a on a.number = both_fire.number_a
    join numbered as b on b.number = both_fire.number_b
)

select layer_a, sae_id_a, feature_id_a, layer_b, sae_id_b, feature_id_b, n_a, n_b, n_both, jaccard
from measured
where jaccard >= $min_jaccard
order by jaccard desc, layer_a, sae_id_a, feature_id_a, layer_b, sae_id_b, feature_id_b
