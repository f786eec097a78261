-- How often and how strongly each feature of an SAE fires: the share of the tokens that the SAE has read, and the largest activation;
-- and the SAE's hook.
select f.feature_id, f.n_tokens / nullif(c.n_tokens, 0), f.max_activation, s.hook
from features as f
join $step(sae_tokens) as c on c.sae_id = f.sae_id
join saes as s on s.sae_id = f.sae_id
where f.sae_id = $sae_id
order by f.feature_id
