-- How many critical features do not fire on the very prompt that they are critical for, and whether ablating them matters (R8).
--
-- One row per method and judge. n_prompts have a set; n_features counts (prompt, feature) pairs, n_inert those without activation on
-- that prompt, unique_features and unique_inert distinct features. flipped_full, flipped_active and flipped_silent count the
-- prompts that flip when the whole set, only what fires of it, or only the inert features are ablated; answer_changed those
-- whose answer changes in any way by the inert ones alone. Nothing of that is on the prompt itself, since a feature that is zero
-- everywhere leaves the pass as it is: only generated tokens can make a difference there.
--
-- $judge judge? = null: only this judge
-- $start integer? = 0: which start of the search for minimal sets; null for all, which then count one by one
with sets as (
    select
        method, start, tau, prompt_id, count(*) as n_features, count(*) filter (where n_tokens = 0) as n_inert
    from critical_features
    where $start is null or start = $start
    group by method, start, tau, prompt_id
),

unique_counts as (
    select
        method,
        count(distinct (sae_id, feature_id)) as unique_features,
        count(distinct (sae_id, feature_id)) filter (where n_tokens = 0) as unique_inert
    from critical_features
    where $start is null or start = $start
    group by method
),

clean as (
    select prompt_id, any_value(completion order by ablation_id) as completion
    from ablations
    where condition = 'none'
    group by prompt_id
),

answers as (
    select
        if(a.part in ('active', 'silent'), a.part, 'full') as part,
        a.method,
        coalesce(a.draw, 0) as start,
        a.tau, a.prompt_id, v.judge, v.flipped, a.p_refusal_token, a.completion
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    where
        a.control is null
        and (
            a.part in ('active', 'silent')
            or (a.method = 'minimal' and a.part is null) or (a.method = 'algorithm1' and a.part = 'common')
        )
        and ($judge is null or v.judge = $judge)
)

select
    s.method, a.judge,
    count(distinct (s.prompt_id, s.start)) as n_prompts,
    sum(s.n_features) filter (where a.part = 'full') as n_features,
    sum(s.n_inert) filter (where a.part = 'full') as n_inert,
    any_value(u.unique_features) as unique_features,
    any_value(u.unique_inert) as unique_inert,
    count(*) filter (where a.part = 'full' and a.flipped) as flipped_full,
    count(*) filter (where a.part = 'active' and a.flipped) as flipped_active,
    count(*) filter (where a.part = 'silent' and a.flipped) as flipped_silent,
    count(*) filter (where a.part = 'silent' and a.completion <> c.completion) as answer_changed,
    avg(a.p_refusal_token) filter (where a.part = 'full') as p_refusal_full,
    avg(a.p_refusal_token) filter (where a.part = 'active') as p_refusal_active,
    avg(a.p_refusal_token) filter (where a.part = 'silent') as p_refusal_silent
from sets as s
join unique_counts as u on u.method = s.method
join answers as a
    on a.method = s.method and a.prompt_id = s.prompt_id and a.start = s.start and a.tau is not distinct from s.tau
left join clean as c on c.prompt_id = s.prompt_id
group by s.method, a.judge
order by s.method, a.judge
