-- Does what wakes restore the behaviour (R13)? A backup is what wakes and whose removal flips; whatever else wakes is none.
--
-- Sources are single critical features that fire on their prompt (one), or what fires of a method's critical sets. Of n_sources,
-- n_flip flip the prompt when they alone are ablated, so that nothing stood in for them, and n_wake wake something. n_tested do not
-- flip alone and wake something: of these n_backed_up flip when what wakes is ablated too, n_random when as many other firing
-- features of the same SAEs are instead. Over the n_tested, p_source, p_woken and p_random are the mean probabilities of a refusal
-- token while the source alone, the source with what wakes, and the source with the others is ablated; n_lower and n_higher count
-- the sources for which it is lower with what wakes than without by more than `by`, or higher: the opposite of a backup.
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
        coalesce(method, 'one') as source,
        prompt_id, n_woken,
        max(if(ablated = 'source', p_refusal_token, null)) as p_source,
        max(if(ablated = 'woken', p_refusal_token, null)) as p_woken,
        max(if(ablated = 'random', p_refusal_token, null)) as p_random,
        coalesce(bool_or(flipped and ablated = 'source'), false) as flips,
        coalesce(bool_or(flipped and ablated = 'woken'), false) as woken_flips,
        coalesce(bool_or(flipped and ablated = 'random'), false) as random_flips
    from answers
    group by method, start, source_sae_id, source_feature_id, prompt_id, n_woken
),

read as (
    select *, n_woken > 0 and not flips as is_tested
    from sources
)

select
    source,
    count(distinct prompt_id) as n_prompts,
    count(*) as n_sources,
    count(*) filter (where flips) as n_flip,
    count(*) filter (where n_woken > 0) as n_wake,
    count(*) filter (where is_tested) as n_tested,
    count(*) filter (where is_tested and woken_flips) as n_backed_up,
    count(*) filter (where is_tested and random_flips) as n_random,
    count(distinct prompt_id) filter (where is_tested and woken_flips) as n_prompts_backed_up,
    avg(p_source) filter (where is_tested) as p_source,
    avg(p_woken) filter (where is_tested) as p_woken,
    avg(p_random) filter (where is_tested) as p_random,
    count(*) filter (where is_tested and p_woken < p_source - $by) as n_lower,
    count(*) filter (where is_tested and p_woken > p_source + $by) as n_higher
from read
group by source
order by source
