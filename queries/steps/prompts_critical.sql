-- The critical features of some prompts ($prompts).
select prompt_id, method, start, sae_id, feature_id
from critical_features
where list_contains($prompts, prompt_id)
order by all
