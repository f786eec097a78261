-- What stands in for a feature when it is ablated, and what it stands in for itself (R13): single features, the most prompts first.
--
-- way backed: the other wakes and is a backup for this feature; backs: this one is for the other. n_prompts counts the prompts on
-- which it flips with the source, by itself or as one of a smallest part of what wakes; n_alone those on which by itself.
--
-- $layer layer: the feature's layer
-- $feature_id feature: the feature
-- $sae_id sae? = null: the feature's SAE, where its layer has several; null for whichever the layer has
-- $n integer = 10: features a way
with both_ways as (
    select
        'backed' as way, layer as other_layer, sae_id as other_sae_id, feature_id as other_feature_id, prompt_id, flips
    from backups
    where
        source_layer = $layer and source_feature_id = $feature_id and ($sae_id is null or source_sae_id = $sae_id)
        and (flips or is_needed)
    union all
    select
        'backs' as way, source_layer as other_layer, source_sae_id as other_sae_id, source_feature_id as other_feature_id,
        prompt_id, flips
    from backups
    where
        layer = $layer and feature_id = $feature_id and source_feature_id is not null and ($sae_id is null or sae_id = $sae_id)
        and (flips or is_needed)
)

select
    way, other_layer, other_sae_id, other_feature_id, count(distinct prompt_id) as n_prompts,
    count(distinct prompt_id) filter (where flips) as n_alone
from both_ways
group by way, other_layer, other_sae_id, other_feature_id
qualify row_number() over (partition by way order by n_prompts desc, other_layer, other_feature_id, other_sae_id) <= $n
order by way, n_prompts desc, other_layer, other_feature_id, other_sae_id
