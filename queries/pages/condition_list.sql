-- The conditions of a study's answers, for the explorer: on how many prompts, and what share flips.
--
-- answers of prompts that showed the behaviour without an edit are what can flip: n_refused of them, n_flipped that do. p_target is the
-- mean of P(target) over the answers to target prompts, p_control over all others. Prompts of no target label are read, beside the
-- oracle, by the recipe's judge of these.
--
-- $judge judge = oracle: whose verdicts count
with refusing as (
    select a.prompt_id
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where a.method = 'none' and v.refused
    group by a.prompt_id
)

select
    a.condition, any_value(a.method) as method, any_value(a.part) as part, any_value(a.control) as control,
    count(*) as n_answers, count(distinct a.prompt_id) as n_prompts, min(a.k) as least_k, max(a.k) as most_k,
    count(*) filter (where r.prompt_id is not null) as n_refused,
    count(*) filter (where r.prompt_id is not null and v.flipped) as n_flipped,
    count(*) filter (where v.degenerate) as n_degenerate,
    avg(a.p_refusal_token) filter (where p.label_role = 'target') as p_target,
    avg(a.p_refusal_token) filter (where p.label_role is distinct from 'target') as p_control,
    count(*) filter (where a.completion <> '') as n_texts
from ablations as a
join prompts as p on p.prompt_id = a.prompt_id
left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
left join refusing as r on r.prompt_id = a.prompt_id
group by a.condition
order by any_value(a.method) <> 'none', any_value(a.control) is not null, a.condition
