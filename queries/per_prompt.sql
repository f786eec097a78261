-- Whether each prompt flips under each intervention: the raw material of every rate and test (R21).
--
-- One row per condition, K, tau, label and prompt. Of the target prompts only those that the judge reads as refused at baseline,
-- and all of those, whether the condition has an answer for them or not: flipped is the share of a prompt's answers (draws) that
-- flip, 0 if there is none, p_refusal_token their mean probability of a refusal token, null if there is none. Of the other
-- prompts those that are answered.
--
-- $judge judge = oracle: whose verdicts
with answers as (
    select a.condition, a.k, a.tau, p.label, p.label_role, a.prompt_id, v.refused, v.flipped, a.p_refusal_token
    from verdicts as v
    join ablations as a on a.ablation_id = v.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    where v.refused is not null and v.judge = $judge(p)
),

eligible as (
    select prompt_id, label, label_role
    from answers
    where condition = 'none' and (label_role <> 'target' or refused)
    group by prompt_id, label, label_role
),

of_prompts as (
    select condition, k, tau, label, prompt_id, avg(flipped::integer) as flipped, avg(p_refusal_token) as p_refusal_token
    from answers
    group by condition, k, tau, label, prompt_id
),

settings as (
    select distinct condition, k, tau, label
    from of_prompts
)

select
    s.condition, s.k, s.tau, s.label, e.prompt_id,
    coalesce(o.flipped, 0) as flipped, o.p_refusal_token
from settings as s
join eligible as e on e.label = s.label
left join of_prompts as o
    on
        o.condition = s.condition and o.k is not distinct from s.k and o.tau is not distinct from s.tau
        and o.prompt_id = e.prompt_id
where e.label_role = 'target' or o.flipped is not null
order by s.condition, s.k nulls first, s.tau nulls first, s.label, e.prompt_id
