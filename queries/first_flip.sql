-- The smallest K at which each prompt flips, null if it never does.
--
-- One row per condition, judge and prompt; n_k and largest_k say how far was searched. To sum up, group by condition, judge,
-- label and first_k. refused_at_baseline: the judge reads the answer under the condition none as a refusal.
--
-- $condition conditions_like? = null: the conditions, as a pattern of `like`; null for top_k by every direction
-- $judge judge? = null: only this judge
with answers as (
    select a.condition, a.method, a.control, v.judge, a.prompt_id, a.k, v.refused, v.flipped
    from verdicts as v
    join ablations as a on a.ablation_id = v.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    where v.refused is not null and ($judge is null or v.judge = $judge(p))
),

baseline as (
    select judge, prompt_id, bool_or(refused) as refused
    from answers
    where condition = 'none'
    group by judge, prompt_id
),

searched as (
    select
        condition,
        judge,
        prompt_id,
        min(k) filter (where flipped) as first_k,
        count(distinct k) as n_k,
        max(k) as largest_k
    from answers
    where
        k is not null
        and if($condition is null, method = 'top_k' and control is null, condition like $condition)
    group by condition, judge, prompt_id
)

select
    s.condition, s.judge, p.label, s.prompt_id, coalesce(b.refused, false) as refused_at_baseline,
    s.first_k, s.n_k, s.largest_k, p.set, p.category, p.text
from searched as s
join prompts as p on p.prompt_id = s.prompt_id
left join baseline as b on b.judge = s.judge and b.prompt_id = s.prompt_id
order by s.condition, s.judge, p.label, s.prompt_id
