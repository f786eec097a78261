-- What a feature wakes when it is ablated, and what wakes it (R13): edges of the waking graph, the most certain first.
--
-- way wakes: ablating the feature wakes the other; woken: ablating the other wakes it. Edges from whole sets have no other feature
-- and are left out.
--
-- $layer layer: the feature's layer
-- $feature_id feature: the feature
-- $sae_id sae? = null: the feature's SAE, where its layer has several; null for whichever the layer has
-- $max_q number = 0.05: false discovery rate of the edges
-- $n integer = 10: edges each way
with both_ways as (
    select
        'wakes' as way, layer as other_layer, sae_id as other_sae_id, feature_id as other_feature_id,
        n_prompts, n_woken, expected, mean_activation, q_value
    from waking_edges
    where
        source_layer = $layer and source_feature_id = $feature_id
        and ($sae_id is null or source_sae_id = $sae_id)
    union all
    select
        'woken' as way, source_layer as other_layer, source_sae_id as other_sae_id, source_feature_id as other_feature_id,
        n_prompts, n_woken, expected, mean_activation, q_value
    from waking_edges
    where
        layer = $layer and feature_id = $feature_id and source_feature_id is not null
        and ($sae_id is null or sae_id = $sae_id)
)

select way, other_layer, other_sae_id, other_feature_id, n_prompts, n_woken, expected, mean_activation, q_value
from both_ways
where q_value <= $max_q
qualify row_number() over (
    partition by way
    order by q_value, n_woken desc, other_layer, other_feature_id, other_sae_id
) <= $n
order by way, q_value, n_woken desc, other_layer, other_feature_id, other_sae_id
