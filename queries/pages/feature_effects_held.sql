-- What P(target) becomes where one feature alone is ablated, of every feature, as feature_effects tells it of one: for pages that are
-- written at once.
--
-- prompts: those on which it falls most, each with its label, its text, P(target) before and after, and whether it flips.
--
-- $judge judge = oracle: whose verdicts count
-- $limit integer = 6: at most this many prompts of a feature
with single_sets as (
    select set_id
    from feature_sets
    group by set_id
    having count(*) = 1
),

alone as (
    select s.set_id, s.layer, s.sae_id, s.feature_id
    from feature_sets as s
    semi join single_sets as one on one.set_id = s.set_id
    where s.value = 0 and s.positions is null
),

clean as (
    select a.prompt_id, avg(a.p_refusal_token) as p_clean, bool_or(v.refused) as refused
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where a.method = 'none'
    group by a.prompt_id
),

stored as (
    select
        s.layer, s.sae_id, s.feature_id, a.prompt_id, c.p_clean, avg(a.p_refusal_token) as p_target,
        bool_or(v.flipped and c.refused) as flipped
    from ablations as a
    join alone as s on s.set_id = a.set_id
    join clean as c on c.prompt_id = a.prompt_id
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where a.method not like 'clamp%'
    group by s.layer, s.sae_id, s.feature_id, a.prompt_id, c.p_clean
),

atlas as (
    select e.layer, e.sae_id, e.feature_id, e.prompt_id, e.p_clean, e.p_target, e.flipped
    from single_effects as e
    anti join stored as s on s.sae_id = e.sae_id and s.feature_id = e.feature_id and s.prompt_id = e.prompt_id
),

measured as (
    select layer, sae_id, feature_id, prompt_id, p_clean, p_target, flipped
    from stored
    union all
    select layer, sae_id, feature_id, prompt_id, p_clean, p_target, flipped
    from atlas
)

select
    m.layer, m.sae_id, m.feature_id, count(*) as n_prompts, count(*) filter (where m.flipped) as n_flipped,
    avg(m.p_clean - m.p_target) as mean_fall,
    list(
        {'label': p.label, 'text': p.text, 'p_clean': m.p_clean, 'p_target': m.p_target, 'flipped': m.flipped}
        order by m.p_clean - m.p_target desc, m.prompt_id
    )[:$limit] as prompts
from measured as m
join prompts as p on p.prompt_id = m.prompt_id
group by m.layer, m.sae_id, m.feature_id
order by m.layer, m.sae_id, m.feature_id
