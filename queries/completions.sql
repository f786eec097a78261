-- What prompts are answered under one condition, beside the answer of the unmodified model.
--
-- Answers are model text: untrusted, and possibly harmful.
--
-- $condition condition = minimal: the condition
-- $label label? = null: which prompts; null for those of the target label
-- $judge judge = oracle: whose verdict
-- $limit integer? = 20: how many prompts; null for all
with clean as (
    select prompt_id, min_by(completion, ablation_id) as completion
    from ablations
    where condition = 'none'
    group by prompt_id
)

select a.prompt_id, p.text, a.k, a.draw, v.flipped, v.degenerate, c.completion as clean, a.completion
from ablations as a
join prompts as p on p.prompt_id = a.prompt_id
join verdicts as v
    on v.ablation_id = a.ablation_id and v.judge = $judge(p)
left join clean as c on c.prompt_id = a.prompt_id
where a.condition = $condition and if($label is null, p.label_role = 'target', p.label = $label) and coalesce(a.draw, 0) = 0
order by a.prompt_id, a.k nulls first, a.ablation_id
limit $limit
