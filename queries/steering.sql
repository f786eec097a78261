-- What control prompts are answered when features are held at a positive value: at the first token, and at every one (R14).
--
-- One row per prompt and value, or level: the continuations stand side by side. value is what all features are held at, and level what of
-- each one's own activations (up to 1 a quantile, above that many times the largest; null where one value is given for all). p_
-- columns are the probability that the first token is a refusal token, refused_ columns the judge's reading of the whole answer.
--
-- $judge judge? = null: who reads the answers; null: the oracle, but phrases where that goes by the first token alone
-- $changed boolean = false: only rows where clamping changes an answer
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

clamped as (
    select set_id, any_value(value) as value, count(*) as n_features
    from feature_sets
    group by set_id
),

side_by_side as (
    select
        f.prompt_id, if(f.level is null, c.value, null) as value, f.level, c.n_features,
        n.p_refusal_token as p_clean, f.p_refusal_token as p_first_token, e.p_refusal_token as p_all_tokens,
        n.refused as refused_clean, f.refused as refused_first_token, e.refused as refused_all_tokens,
        n.completion as clean, f.completion as first_token, e.completion as all_tokens
    from answers as f
    join clamped as c on c.set_id = f.set_id
    join answers as e on e.prompt_id = f.prompt_id and e.method = f.method and e.draw = f.draw and e.part = 'all_tokens'
    join answers as n on n.prompt_id = f.prompt_id and n.method = 'none'
    where f.part = 'first_token'
)

select
    s.prompt_id, p.text, s.value, s.level, s.n_features, s.p_clean, s.p_first_token, s.p_all_tokens,
    s.refused_clean, s.refused_first_token, s.refused_all_tokens, s.clean, s.first_token, s.all_tokens
from side_by_side as s
join prompts as p on p.prompt_id = s.prompt_id
where not $changed or s.clean <> s.first_token or s.clean <> s.all_tokens
order by s.prompt_id, s.level nulls first, s.value
