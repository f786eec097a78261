-- What ablating the active part of the first set that a method found does, prompt by prompt, whatever its tau: K = 0 of Stage 3.
select a.prompt_id, v.flipped, a.p_refusal_token
from ablations as a
join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
where
    a.method = $method and a.part = 'active' and a.control is null and coalesce(a.draw, 0) = 0
    and v.flipped is not null
order by a.prompt_id
