-- The critical features that fire, of some prompts: what is ablated while one looks for what wakes.
select prompt_id, method, start, layer, sae_id, feature_id
from critical_features
where n_tokens > 0 and list_contains($prompts, prompt_id)
order by all
