-- The stored answers of the conditions whose tokens are stored too, one of each prompt.
select prompt_id, condition, min(ablation_id)
from ablations
where condition in ('none', 'direction')
group by prompt_id, condition
