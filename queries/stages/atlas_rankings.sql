-- Every active feature of a prompt, P(target) with and without it, and how strongly each method says that it is a cause.
--
-- score is null where the method does not name the feature. Features stand in the order of layer, sae_id and feature_id.
--
-- $prompt_id prompt: the prompt
with active as (
    select
        layer, sae_id, feature_id, n_tokens, max_activation, p_clean, p_target,
        row_number() over (order by layer, sae_id, feature_id) - 1 as place
    from single_effects
    where prompt_id = $prompt_id
),

searched as (
    select a.method, s.sae_id, s.feature_id, count(*) as n_sets
    from ablations as a
    join feature_sets as s on s.set_id = a.set_id
    where a.prompt_id = $prompt_id and a.method in ('minimal', 'algorithm1') and a.part is null and a.control is null
    group by all
),

scores as (
    select 'cosine_' || direction as method, sae_id, feature_id, cosine as score
    from alignments
    union all
    select model as method, sae_id, feature_id, weight as score
    from fm_embeddings
    union all
    select model || '_size' as method, sae_id, feature_id, abs(weight) as score
    from fm_embeddings
    union all
    select 'probe' as method, sae_id, feature_id, weight as score
    from probe_weights
    union all
    select 'probe_size' as method, sae_id, feature_id, abs(weight) as score
    from probe_weights
    union all
    select method, sae_id, feature_id, -effect as score
    from attributions
    where prompt_id = $prompt_id
    union all
    select method, sae_id, feature_id, n_sets as score
    from searched
    union all
    select 'firing_counts' as method, sae_id, feature_id, n_tokens as score
    from active
    union all
    select 'activation' as method, sae_id, feature_id, max_activation as score
    from active
),

methods as (
    select distinct method
    from scores
)

select m.method, a.place, a.sae_id, a.feature_id, a.p_clean, a.p_target, s.score
from active as a
cross join methods as m
left join scores as s on s.method = m.method and s.sae_id = a.sae_id and s.feature_id = a.feature_id
order by m.method, a.place
