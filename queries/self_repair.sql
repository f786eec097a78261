-- Redundant features (R13): critical features that are silent on their prompt, and wake when the active ones are ablated.
--
-- Two readings, side by side. default: prompts count where ablating the whole set flips and ablating its active features alone does
-- not. literal: prompts count where ablating the silent features alone changes the answer; on the prompt's own pass it cannot, so
-- only generated tokens let a prompt in. n_sets have a set, n_with_silent one with silent features, n_kept are kept by the reading.
-- Of the n_silent silent features of these, n_woken wake while the active ones are ablated: at_first and at_system on at least
-- one such token (the first; the first or another one of the template), at_user on one of the user's. tokens_first,
-- tokens_template and tokens_user are shares of all woken tokens.
--
-- $judge judge = oracle: who decides what flips
-- $start integer? = null: only this start of the search; null for all, which then count one by one
with sets as (
    select method, start, tau, prompt_id, count(*) filter (where n_tokens = 0) as n_silent
    from critical_features
    where $start is null or start = $start
    group by method, start, tau, prompt_id
),

answers as (
    select
        if(a.part in ('active', 'silent'), a.part, 'full') as part,
        a.method,
        coalesce(a.draw, 0) as start,
        a.tau, a.prompt_id, v.flipped, a.completion
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    where
        a.control is null
        and (
            a.part in ('active', 'silent')
            or (a.method = 'minimal' and a.part is null) or (a.method = 'algorithm1' and a.part = 'common')
        )
        and v.judge = $judge
),

clean as (
    select prompt_id, any_value(completion order by ablation_id) as completion
    from ablations
    where condition = 'none'
    group by prompt_id
),

judged as (
    select
        s.method, s.start, s.prompt_id,
        any_value(s.n_silent) as n_silent,
        any_value(s.n_silent) > 0
        and bool_or(a.part = 'full' and a.flipped)
        and not bool_or(a.part = 'active' and a.flipped) as kept_by_default,
        bool_or(a.part = 'silent' and a.completion <> c.completion) as kept_literally
    from sets as s
    join answers as a
        on a.method = s.method and a.prompt_id = s.prompt_id and a.start = s.start and a.tau is not distinct from s.tau
    left join clean as c on c.prompt_id = s.prompt_id
    group by s.method, s.start, s.prompt_id
),

read as (
    select 'default' as reading, method, start, prompt_id, n_silent, kept_by_default as is_kept
    from judged
    union all
    select 'literal' as reading, method, start, prompt_id, n_silent, kept_literally as is_kept
    from judged
),

woken as (
    select p.method, p.start, p.prompt_id, w.n_tokens, w.n_first, w.n_template, w.n_user
    from critical_features as f
    join waking_passes as p
        on p.prompt_id = f.prompt_id and p.method = f.method and p.start = f.start and p.control is null
    join wakings as w on w.ablation_id = p.ablation_id and w.sae_id = f.sae_id and w.feature_id = f.feature_id
    where f.n_tokens = 0
),

sums as (
    select
        method, start, prompt_id,
        count(*) as n_woken,
        count(*) filter (where n_first > 0) as n_at_first,
        count(*) filter (where n_first + n_template > 0) as n_at_system,
        count(*) filter (where n_user > 0) as n_at_user,
        sum(n_tokens) as n_tokens,
        sum(n_first) as n_first,
        sum(n_template) as n_template,
        sum(n_user) as n_user
    from woken
    group by method, start, prompt_id
)

select
    r.reading,
    r.method,
    count(*) as n_sets,
    count(*) filter (where r.n_silent > 0) as n_with_silent,
    count(*) filter (where r.is_kept) as n_kept,
    coalesce(sum(r.n_silent) filter (where r.is_kept), 0) as n_silent,
    coalesce(sum(s.n_woken) filter (where r.is_kept), 0) as n_woken,
    sum(s.n_at_first) filter (where r.is_kept) / sum(s.n_woken) filter (where r.is_kept) as at_first,
    sum(s.n_at_system) filter (where r.is_kept) / sum(s.n_woken) filter (where r.is_kept) as at_system,
    sum(s.n_at_user) filter (where r.is_kept) / sum(s.n_woken) filter (where r.is_kept) as at_user,
    sum(s.n_first) filter (where r.is_kept) / sum(s.n_tokens) filter (where r.is_kept) as tokens_first,
    sum(s.n_template) filter (where r.is_kept) / sum(s.n_tokens) filter (where r.is_kept) as tokens_template,
    sum(s.n_user) filter (where r.is_kept) / sum(s.n_tokens) filter (where r.is_kept) as tokens_user
from read as r
left join sums as s on s.method = r.method and s.start = r.start and s.prompt_id = r.prompt_id
group by r.reading, r.method
order by r.reading, r.method
