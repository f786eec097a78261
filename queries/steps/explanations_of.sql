-- The explanations of some features ($features, each sae_id/feature_id), in the order of a feature's.
select sae_id, feature_id, description
from explanations
where list_contains($features, sae_id || '/' || feature_id)
order by sae_id, feature_id, number
