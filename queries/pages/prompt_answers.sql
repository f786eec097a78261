-- What one prompt was answered under each condition, for the explorer: the unmodified model first, then what flipped it.
--
-- One row per method, part and control: the answer that flipped it with the fewest features, else the one with the lowest P(target).
-- n counts the answers of the condition, n_flipped those that flip. features: of the set that the row is about, at most so many. A
-- prompt of no target label is read, beside the oracle, by the recipe's judge of these.
--
-- $prompt_id prompt: the prompt
-- $judge judge = oracle: whose verdicts count
-- $features integer = 12: features of a set that are listed
with reader as (
    select $judge(p) as judge
    from prompts as p
    where p.prompt_id = $prompt_id
),

answered as (
    select
        a.ablation_id, a.condition, a.method, a.control, a.k, a.tau, a.draw, a.set_id, a.p_refusal_token as p_target,
        a.first_token, a.completion, v.refused, v.degenerate,
        v.flipped and exists (
            select 1
            from ablations as c
            join verdicts as w on w.ablation_id = c.ablation_id and w.judge = (select judge from reader)
            where c.prompt_id = $prompt_id and c.method = 'none' and w.refused
        ) as flipped
    from ablations as a
    left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = (select judge from reader)
    where a.prompt_id = $prompt_id
),

sets as (
    select
        s.set_id, count(*) as n_features, count(*) filter (where s.value <> 0) as n_clamped,
        list(
            {'layer': s.layer, 'sae_id': s.sae_id, 'feature_id': s.feature_id} order by s.layer, s.feature_id, s.sae_id
        )[:$features] as features
    from feature_sets as s
    where s.set_id in (select set_id from answered)
    group by s.set_id
),

ranked as (
    select
        a.*, s.n_features, s.n_clamped, s.features,
        count(*) over same as n,
        count(*) filter (where a.flipped) over same as n_flipped,
        row_number() over (
            partition by a.condition
            order by coalesce(a.flipped, false) desc, if(a.flipped, s.n_features, null), a.p_target, a.ablation_id
        ) as number
    from answered as a
    left join sets as s on s.set_id = a.set_id
    window same as (partition by a.condition)
)

select
    condition, method, control, k, tau, draw, p_target, first_token, completion, refused, flipped, degenerate, n, n_flipped,
    n_features, n_clamped, features
from ranked
where number = 1
order by method <> 'none', flipped desc, control is not null, n_features, condition
