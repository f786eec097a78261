-- The prompts of a study with what became of them, for the explorer: those on which most methods flip first.
--
-- p_target and refused are of the unmodified model; n_methods counts the methods of Stages 1 to 3 that flip it by what
-- they found, not by a control or by what Algorithm 1 left over, where the unmodified model shows the behaviour. Prompts of no
-- target label are read, beside the oracle, by the recipe's judge of these.
--
-- $words text? = null: words of the prompt, separated by spaces
-- $label label? = null: only this label
-- $category category? = null: only this category
-- $judge judge = oracle: whose verdicts count
-- $limit integer = 50: at most this many
-- $skip integer = 0: how many are passed over
with answered as (
    select a.prompt_id, a.stage, a.method, a.part, a.control, a.p_refusal_token, v.refused, v.flipped
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
),

clean as (
    select prompt_id, avg(p_refusal_token) as p_target, bool_or(refused) as refused
    from answered
    where method = 'none'
    group by prompt_id
),

flips as (
    select prompt_id, count(distinct method) as n_methods
    from answered
    where
        flipped and control is null and coalesce(part, '') not in ('complement', 'common_complement')
        and stage in ('candidates', 'algorithm1', 'minimal', 'stage3', 'stage3_probe')
    group by prompt_id
)

select
    p.prompt_id, p.label, p.label_role, p.category, p.text, p.n_tokens, c.p_target, c.refused,
    if(c.refused, coalesce(f.n_methods, 0), null) as n_methods
from prompts as p
left join clean as c on c.prompt_id = p.prompt_id
left join flips as f on f.prompt_id = p.prompt_id
where
    ($label is null or p.label = $label)
    and ($category is null or p.category = $category)
    and (
        $words is null
        or len(list_filter(string_split(lower($words), ' '), lambda word: not contains(lower(p.text), word))) = 0
    )
order by n_methods desc nulls last, c.p_target desc nulls last, p.prompt_id
limit $limit offset $skip
