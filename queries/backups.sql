-- Does what wakes restore the behaviour (R13)? A backup is what wakes and whose removal flips; whatever else wakes is none.
--
-- Sources are single critical features that fire on their prompt (one), or what fires of a method's critical sets. Of n_sources,
-- n_flip flip the prompt when they alone are ablated, so that nothing stood in for them, and n_wake wake something. n_tested do not
-- flip alone and wake something: of these n_backed_up flip when what wakes is ablated too. The control are as many other firing
-- features of the same SAEs, drawn from those that are not candidates (random_active): fewer, or none, where the prompt has no more.
-- n_compared of the n_tested have a control, n_random of them flip with it. Sources of one prompt are much the same, and so are
-- prompts of one family (a prompt without one is its own): on n_more families the share of the n_compared that flips is larger with
-- what wakes than with the others, on n_less smaller. Over the n_tested, p_source and p_woken are the mean probabilities of a refusal
-- token while the source alone and the source with what wakes is ablated; over the n_compared, p_random while the source with the
-- others is. n_lower and n_higher count the sources for which it is lower with what wakes than without by more than `by`, or higher:
-- the opposite of a backup.
--
-- $judge judge = oracle: who decides what flips
-- $by number = 0.01: changes of a probability up to this count as none
with answers as (
    select
        t.method, t.start, t.source_sae_id, t.source_feature_id, t.prompt_id, t.ablated, t.n_woken,
        a.p_refusal_token, v.flipped
    from backup_tests as t
    join ablations as a on a.ablation_id = t.ablation_id
    join verdicts as v on v.ablation_id = t.ablation_id
    where v.judge = $judge
),

sources as (
    select
        coalesce(a.method, 'one') as source,
        a.prompt_id, a.n_woken,
        any_value(coalesce(p.family, p.prompt_hash)) as family,
        max(if(ablated = 'source', p_refusal_token, null)) as p_source,
        max(if(ablated = 'woken', p_refusal_token, null)) as p_woken,
        max(if(ablated = 'random', p_refusal_token, null)) as p_random,
        coalesce(bool_or(flipped and ablated = 'source'), false) as flips,
        coalesce(bool_or(flipped and ablated = 'woken'), false) as woken_flips,
        bool_or(flipped) filter (where ablated = 'random') as random_flips
    from answers as a
    join prompts as p on p.prompt_id = a.prompt_id
    group by a.method, a.start, a.source_sae_id, a.source_feature_id, a.prompt_id, a.n_woken
),

read as (
    select *, n_woken > 0 and not flips as is_tested, n_woken > 0 and not flips and random_flips is not null as is_compared
    from sources
),

by_family as (
    select source, avg(woken_flips::integer - random_flips::integer) as more
    from read
    where is_compared
    group by source, family
),

against_others as (
    select source, count(*) filter (where more > 0) as n_more, count(*) filter (where more < 0) as n_less
    from by_family
    group by source
)

select
    source,
    count(distinct prompt_id) as n_prompts,
    count(*) as n_sources,
    count(*) filter (where flips) as n_flip,
    count(*) filter (where n_woken > 0) as n_wake,
    count(*) filter (where is_tested) as n_tested,
    count(*) filter (where is_tested and woken_flips) as n_backed_up,
    count(*) filter (where is_compared) as n_compared,
    count(*) filter (where is_compared and random_flips) as n_random,
    count(distinct prompt_id) filter (where is_tested and woken_flips) as n_prompts_backed_up,
    avg(p_source) filter (where is_tested) as p_source,
    avg(p_woken) filter (where is_tested) as p_woken,
    avg(p_random) filter (where is_compared) as p_random,
    count(*) filter (where is_tested and p_woken < p_source - $by) as n_lower,
    count(*) filter (where is_tested and p_woken > p_source + $by) as n_higher,
    coalesce(any_value(a.n_more), 0) as n_more,
    coalesce(any_value(a.n_less), 0) as n_less
from read
left join against_others as a using (source)
group by source
order by source
