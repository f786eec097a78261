-- The prompts of the target label that the unmodified model refuses, in an order that takes every family in turn.
--
-- $judge judge: whose verdict counts
-- $split text: the prompts of the analysis
with refused as (
    select p.prompt_id, p.prompt_hash, coalesce(p.family, p.prompt_hash) as family
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
    join prompts as p on p.prompt_id = a.prompt_id
    where a.method = 'none' and p.label_role = 'target' and p.split = $split and v.refused
),

turns as (
    select prompt_id, prompt_hash, row_number() over (partition by family order by prompt_hash) as turn
    from refused
)

select prompt_id
from turns
order by turn, prompt_hash
