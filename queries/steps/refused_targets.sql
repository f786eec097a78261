-- Target prompts that have a verdict of a judge ($judge) without an edit, and those of them that are refused.
select
    count(distinct a.prompt_id) filter (where v.refused is not null) as n,
    count(distinct a.prompt_id) filter (where v.refused) as n_refused
from ablations as a
join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
join prompts as p on p.prompt_id = a.prompt_id
where a.condition = 'none' and p.label_role = 'target'
