-- How many control prompts change when features are held at a positive value, by value and level (R14).
--
-- One row for each value or level (see the question steering) and part of the answer over which the features are held. Of n_prompts
-- control prompts, n_clean are refused by the unmodified model, n_refused while the features are held, n_begun of these not by the
-- unmodified model, by the judge's reading of the whole answer, n_first by its first token alone (null where first_token has read
-- none), n_degenerate are answered with no sensible text, n_changed otherwise than before. Where n_begun is 0 at every level up to 2,
-- the features do not bring the behaviour about by themselves.
--
-- $judge judge? = null: who reads the answers; null: the oracle, but phrases where that goes by the first token alone
with judged as (
    select
        a.prompt_id, a.ablation_id, a.method, a.part, a.set_id, a.draw, a.p_refusal_token, a.completion,
        v.judge, v.refused, v.degenerate, c.level,
        if(p.label_role <> 'target', $judge(control), $judge(oracle)) as own
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    left join clamps as c on c.ablation_id = a.ablation_id
    where a.method = 'none' or (a.method in ('clamp', 'clamp_scaled') and a.part in ('first_token', 'all_tokens'))
),

answers as (
    select *
    from judged
    where
        judge = coalesce(if($judge = $judge(oracle), own, $judge), own)
        or ($judge is null and own = 'first_token' and judge = 'phrases')
    qualify row_number() over (partition by ablation_id order by judge = own) = 1
),

clean as (
    select prompt_id, refused, completion
    from answers
    where method = 'none'
),

by_first_token as (
    select a.prompt_id, a.method, a.part, a.draw, v.refused
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = 'first_token'
    where a.method in ('clamp', 'clamp_scaled')
),

clamped as (
    select set_id, any_value(value) as value, count(*) as n_features
    from feature_sets
    group by set_id
)

select
    a.part as held_over,
    if(a.level is null, c.value, null) as value,
    a.level,
    any_value(c.n_features) as n_features,
    count(*) as n_prompts,
    count(*) filter (where n.refused) as n_clean,
    count(*) filter (where a.refused) as n_refused,
    count(*) filter (where a.refused and not n.refused) as n_begun,
    if(count(f.refused) = 0, null, count(*) filter (where f.refused)) as n_first,
    count(*) filter (where a.degenerate) as n_degenerate,
    count(*) filter (where a.completion <> n.completion) as n_changed
from answers as a
join clamped as c on c.set_id = a.set_id
join clean as n on n.prompt_id = a.prompt_id
left join by_first_token as f on f.prompt_id = a.prompt_id and f.method = a.method and f.part = a.part and f.draw = a.draw
where a.method <> 'none'
group by a.part, if(a.level is null, c.value, null), a.level
order by held_over desc, level nulls first, value
