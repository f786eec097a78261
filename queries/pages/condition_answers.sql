-- The answers of one condition beside the unmodified model's, for the explorer: prompt by prompt, those that flip first.
--
-- Prompts of no target label are read, beside the oracle, by the recipe's judge of these.
--
-- $condition condition: the condition
-- $k integer? = null: only this K
-- $label label? = null: only prompts of this label
-- $judge judge = oracle: whose verdicts count
-- $limit integer = 30: at most this many
-- $skip integer = 0: how many are passed over
with answered as (
    select
        a.ablation_id, a.prompt_id, a.method, a.condition, a.k, a.tau, a.draw, a.set_id, a.p_refusal_token as p_target,
        a.completion, v.refused, coalesce(v.flipped, false) as flipped, v.degenerate
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where a.method = 'none' or a.condition = $condition
),

clean as (
    select prompt_id, completion, p_target, refused
    from answered
    where method = 'none'
    qualify row_number() over (partition by prompt_id order by ablation_id) = 1
)

select
    a.prompt_id, p.label, p.label_role, p.text, a.k, a.tau, a.draw, c.completion as clean_completion, c.p_target as clean_p_target,
    c.refused as clean_refused, a.completion, a.p_target, a.refused, a.flipped and coalesce(c.refused, false) as flipped, a.degenerate
from answered as a
join prompts as p on p.prompt_id = a.prompt_id
left join clean as c on c.prompt_id = a.prompt_id
where a.condition = $condition and ($k is null or a.k = $k) and ($label is null or p.label = $label)
order by (a.flipped and coalesce(c.refused, false)) desc, a.k nulls first, a.tau nulls first, a.prompt_id, a.draw nulls first, a.ablation_id
limit $limit offset $skip
