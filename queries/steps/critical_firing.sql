-- The features of the sets found that fire on their prompts.
select prompt_id, sae_id, feature_id, max_activation
from critical_features
where method = $method and start = 0 and n_tokens > 0
order by prompt_id, layer, sae_id, feature_id
