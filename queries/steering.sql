-- What control prompts are answered when features are held at a positive value: at the first token, and at every one (R14).
--
-- One row a prompt and value; the continuations stand side by side. p_ columns are the probability that the first token is a
-- refusal token, refused_ columns the judge's reading.
--
-- $judge judge = oracle: who reads the answers
-- $changed boolean = false: only rows where clamping changes an answer
with answers as (
    select a.prompt_id, a.method, a.part, a.set_id, a.draw, a.p_refusal_token, a.completion, v.refused
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    where
        (a.method = 'none' or (a.method = 'clamp' and a.part in ('first_token', 'all_tokens')))
        and v.judge = if(p.label_role <> 'target' and $judge = $judge(oracle), $judge(control), $judge)
),

clamped as (
    select set_id, any_value(value) as value, count(*) as n_features
    from feature_sets
    group by set_id
),

side_by_side as (
    select
        f.prompt_id, c.value, c.n_features,
        n.p_refusal_token as p_clean, f.p_refusal_token as p_first_token, e.p_refusal_token as p_all_tokens,
        n.refused as refused_clean, f.refused as refused_first_token, e.refused as refused_all_tokens,
        n.completion as clean, f.completion as first_token, e.completion as all_tokens
    from answers as f
    join clamped as c on c.set_id = f.set_id
    join answers as e on e.prompt_id = f.prompt_id and e.draw = f.draw and e.part = 'all_tokens'
    join answers as n on n.prompt_id = f.prompt_id and n.method = 'none'
    where f.part = 'first_token'
)

select
    s.prompt_id, p.text, s.value, s.n_features, s.p_clean, s.p_first_token, s.p_all_tokens,
    s.refused_clean, s.refused_first_token, s.refused_all_tokens, s.clean, s.first_token, s.all_tokens
from side_by_side as s
join prompts as p on p.prompt_id = s.prompt_id
where not $changed or s.clean <> s.first_token or s.clean <> s.all_tokens
order by s.prompt_id, s.value
