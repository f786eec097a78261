-- Which of the given features are near-duplicates: decoder rows alike, and firing on the same prompts.
--
-- Every pair whose decoder cosine is recorded (candidates, at least the recipe's redundancy.min_cosine) stands once, a before b by
-- layer and feature_id. n_a, n_b and n_both count prompts on which each or both fire, BOS left out; jaccard = n_both / (n_a + n_b
-- - n_both), null if neither ever fires. A pair of high cosine that never fires together may be a backup rather than a copy.
--
-- $features features: which features
-- $min_cosine number = 0.5: only pairs with at least this decoder cosine
-- $min_jaccard number = 0: only pairs with at least this Jaccard index, where there is one
-- $pairs any|same_layer|across_layers = any: which pairs
with chosen as (
    select distinct sae_id, feature_id
    from $features(features)
),

pairs as (
    select d.layer, d.sae_id, d.feature_id, d.other_layer, d.other_sae_id, d.other_feature_id, d.cosine
    from decoder_cosines as d
    semi join chosen as a on a.sae_id = d.sae_id and a.feature_id = d.feature_id
    semi join chosen as b on b.sae_id = d.other_sae_id and b.feature_id = d.other_feature_id
    where
        d.cosine >= $min_cosine
        and case $pairs
            when 'same_layer' then d.layer = d.other_layer
            when 'across_layers' then d.layer <> d.other_layer
            else true
        end
),

bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos'
),

firings as (
    select distinct a.sae_id, a.feature_id, a.prompt_id
    from $features(activations) as a
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
),

counts as (
    select sae_id, feature_id, count(*) as n_prompts
    from firings
    group by sae_id, feature_id
),

together as (
    select p.sae_id, p.feature_id, p.other_sae_id, p.other_feature_id, count(*) as n_both
    from pairs as p
    join firings as a on a.sae_id = p.sae_id and a.feature_id = p.feature_id
    join firings as b on b.sae_id = p.other_sae_id and b.feature_id = p.other_feature_id and b.prompt_id = a.prompt_id
    group by p.sae_id, p.feature_id, p.other_sae_id, p.other_feature_id
),

measured as (
    select
        p.layer as layer_a, p.sae_id as sae_id_a, p.feature_id as feature_id_a,
        p.other_layer as layer_b, p.other_sae_id as sae_id_b, p.other_feature_id as feature_id_b,
        p.cosine, coalesce(a.n_prompts, 0) as n_a, coalesce(b.n_prompts, 0) as n_b, coalesce(t.n_both, 0) as n_both
    from pairs as p
    left join counts as a on a.sae_id = p.sae_id and a.feature_id = p.feature_id
    left join counts as b on b.sae_id = p.other_sae_id and b.feature_id = p.other_feature_id
    left join together as t
        on t.sae_id = p.sae_id and t.feature_id = p.feature_id
        and t.other_sae_id = p.other_sae_id and t.other_feature_id = p.other_feature_id
)

select
    layer_a, sae_id_a, feature_id_a, layer_b, sae_id_b, feature_id_b, cosine, n_a, n_b, n_both,
    n_both / nullif(n_a + n_b - n_both, 0) as jaccard
from measured
where coalesce(n_both / nullif(n_a + n_b - n_both, 0), 0) >= $min_jaccard
order by cosine desc, layer_a, sae_id_a, feature_id_a, layer_b, sae_id_b, feature_id_b
