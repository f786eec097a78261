-- What P(target) and the answer become where one feature alone is ablated, prompt by prompt: from stored ablations and the atlas.
--
-- Nothing is generated for the atlas and for what only reads what wakes: such rows have no answer. The largest falls come first.
--
-- $layer layer: the feature's layer
-- $feature_id feature: the feature
-- $sae_id sae? = null: the feature's SAE, where its layer has several; null for whichever the layer has
-- $judge judge = oracle: whose verdicts count
-- $limit integer = 6: at most this many prompts
with mine as (
    select set_id
    from feature_sets
    where
        layer = $layer and feature_id = $feature_id and ($sae_id is null or sae_id = $sae_id)
        and value = 0 and positions is null
),

alone as (
    select s.set_id
    from feature_sets as s
    semi join mine as m on m.set_id = s.set_id
    group by s.set_id
    having count(*) = 1
),

clean as (
    select a.prompt_id, any_value(a.completion) as completion, avg(a.p_refusal_token) as p_clean, bool_or(v.refused) as refused
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where a.method = 'none'
    group by a.prompt_id
),

stored as (
    select
        a.prompt_id, c.p_clean, c.completion as clean_completion, avg(a.p_refusal_token) as p_target,
        max(nullif(a.completion, '')) as completion, bool_or(v.flipped and c.refused) as flipped
    from ablations as a
    join alone as s on s.set_id = a.set_id
    join clean as c on c.prompt_id = a.prompt_id
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where a.method not like 'clamp%'
    group by a.prompt_id, c.p_clean, c.completion
),

atlas as (
    select prompt_id, p_clean, null::varchar as clean_completion, p_target, null::varchar as completion, flipped
    from single_effects
    where
        layer = $layer and feature_id = $feature_id and ($sae_id is null or sae_id = $sae_id)
        and prompt_id not in (select prompt_id from stored)
),

measured as (
    select prompt_id, p_clean, clean_completion, p_target, completion, flipped
    from stored
    union all
    select prompt_id, p_clean, clean_completion, p_target, completion, flipped
    from atlas
),

-- Not as windows: DuckDB 1.5.5 fails at some of them, about one time in three hundred, when several threads answer.
totals as (
    select
        count(*) as n_prompts, count(*) filter (where flipped) as n_flipped, avg(p_clean - p_target) as mean_fall
    from measured
)

select
    m.prompt_id, p.label, p.label_role, p.text, m.p_clean, m.p_target, m.clean_completion, m.completion, m.flipped,
    t.n_prompts, t.n_flipped, t.mean_fall
from measured as m
join prompts as p on p.prompt_id = m.prompt_id
cross join totals as t
order by m.p_clean - m.p_target desc, m.prompt_id
limit $limit
