-- Candidates that each prompt has of its own.
select a.prompt_id, a.k, s.sae_id, s.feature_id
from ablations as a
join feature_sets as s on s.set_id = a.set_id
where a.method = 'top_k' and a.part = $part and a.control is null
order by a.prompt_id, a.k, s.layer, s.sae_id, s.feature_id
