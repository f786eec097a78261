-- How many verdicts of the judge first_token rounding alone may turn, because a target token and another are that close (R7).
--
-- One row for each condition and label. margin is by how much the largest logit of a target token is above that of any other first
-- token: the verdict depends on its sign. n_uncertain counts the answers whose margin is within the study's noise floor, which is
-- measured once (table noise), n_close those within ten times that, smallest is the smallest margin, whatever its sign. What judges
-- of whole answers say depends on every token of them, and is not counted here.
--
-- $condition text? = null: only this condition
select
    a.condition, p.label, count(*) as n_answers,
    if(any_value(n.floor) is null, null, count(*) filter (where abs(a.margin) <= n.floor)) as n_uncertain,
    if(any_value(n.floor) is null, null, count(*) filter (where abs(a.margin) <= 10 * n.floor)) as n_close,
    min(abs(a.margin)) as smallest, any_value(n.floor) as floor
from verdicts as v
join ablations as a on a.ablation_id = v.ablation_id
join prompts as p on p.prompt_id = a.prompt_id
left join noise as n on true
where v.judge = 'first_token' and a.margin is not null and ($condition is null or a.condition = $condition)
group by a.condition, p.label
order by a.condition, p.label desc
