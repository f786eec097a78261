-- The decoder rows closest to a feature's, of the candidates that the study compares (redundancy.min_cosine and above).
--
-- $layer layer: the feature's layer
-- $feature_id feature: the feature
-- $sae_id sae? = null: the feature's SAE, where its layer has several; null for whichever the layer has
-- $n integer = 10: how many
with both_ways as (
    select other_layer, other_sae_id, other_feature_id, cosine
    from decoder_cosines
    where layer = $layer and feature_id = $feature_id and ($sae_id is null or sae_id = $sae_id)
    union all
    select layer as other_layer, sae_id as other_sae_id, feature_id as other_feature_id, cosine
    from decoder_cosines
    where other_layer = $layer and other_feature_id = $feature_id and ($sae_id is null or other_sae_id = $sae_id)
)

select other_layer, other_sae_id, other_feature_id, cosine
from both_ways
order by cosine desc, other_layer, other_feature_id, other_sae_id
limit $n
