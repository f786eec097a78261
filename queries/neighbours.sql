-- What given features wake when they are ablated, and what wakes them (R13): edges of the waking graph, the surest first.
--
-- way wakes: ablating the feature wakes the other; woken: ablating the other wakes it. Edges from whole sets have no other feature
-- and are left out.
--
-- $features features: which features
-- $max_q number = 0.05: false discovery rate of the edges
-- $n integer = 10: edges a feature and way
with edges as (
    select
        source_sae_id, source_layer, source_feature_id, sae_id, layer, feature_id, n_prompts, n_woken, expected, mean_activation,
        q_value
    from waking_edges
    where source_feature_id is not null and q_value <= $max_q
),

both_ways as (
    select
        f.layer, f.sae_id, f.feature_id, 'wakes' as way, e.layer as other_layer, e.sae_id as other_sae_id,
        e.feature_id as other_feature_id, e.n_prompts, e.n_woken, e.expected, e.mean_activation, e.q_value
    from $features(features) as f
    join edges as e on e.source_sae_id = f.sae_id and e.source_feature_id = f.feature_id
    union all
    select
        f.layer, f.sae_id, f.feature_id, 'woken' as way, e.source_layer as other_layer, e.source_sae_id as other_sae_id,
        e.source_feature_id as other_feature_id, e.n_prompts, e.n_woken, e.expected, e.mean_activation, e.q_value
    from $features(features) as f
    join edges as e on e.sae_id = f.sae_id and e.feature_id = f.feature_id
)

select
    layer, sae_id, feature_id, way, other_layer, other_sae_id, other_feature_id, n_prompts, n_woken, expected, mean_activation, q_value
from both_ways
qualify row_number() over (
    partition by sae_id, feature_id, way
    order by q_value, n_woken desc, other_layer, other_feature_id, other_sae_id
) <= $n
order by layer, sae_id, feature_id, way, q_value, n_woken desc, other_layer, other_feature_id, other_sae_id
