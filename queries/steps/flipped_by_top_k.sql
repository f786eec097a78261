-- Refused target prompts that flip for a judge ($judge) while the top K features of each SAE are ablated, by what ranks them, and
-- the largest K.
with refused as (
    select a.prompt_id
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
    join prompts as p on p.prompt_id = a.prompt_id
    where a.condition = 'none' and v.refused and p.label_role = 'target'
)

select
    a.part as direction,
    count(distinct a.prompt_id) filter (where v.flipped) as n_flipped,
    max(a.k) as largest_k
from ablations as a
semi join refused as r on r.prompt_id = a.prompt_id
join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
where a.method = 'top_k' and a.control is null
group by all
order by all
