-- Prompts that Stage 3's sets were ablated on, and those of them that its models were trained on.
select count(distinct a.prompt_id), count(distinct a.prompt_id) filter (where t.prompt_id is not null)
from ablations as a
left join predictions as t on t.prompt_id = a.prompt_id and t.split <> 'test' and t.model not like '%held_out'
where a.condition = 'stage3_alone'
