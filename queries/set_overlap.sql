-- How alike the sets are that a search finds when it is repeated: Jaccard index |A and B| / |A or B| (R21).
--
-- over starts: one row per target prompt, the mean over all pairs of its random starts or seeds (pairs of empty sets left out).
-- over halves: one row, the distinct features found on one half of the target prompts against those found on the other; the
-- prompts are counted in order of prompt_id, the even ones are half 0.
--
-- $conditions conditions = minimal,algorithm1,algorithm1_common,stage3: which sets, by condition, separated by commas
with found as (
    select a.condition, a.k, a.tau, coalesce(a.draw, a.seed, 0) as start, a.prompt_id, a.set_id
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    where p.label_role = 'target' and list_contains($conditions, a.condition)
),

members as (
    select f.condition, f.k, f.tau, f.start, f.prompt_id, s.sae_id, s.feature_id
    from found as f
    join feature_sets as s on s.set_id = f.set_id
),

set_sizes as (
    select condition, k, tau, start, prompt_id, coalesce(sum(n), 0) as n_features
    from found
    left join (select set_id, count(*) as n from feature_sets group by set_id) using (set_id)
    group by condition, k, tau, start, prompt_id
),

shared as (
    select a.condition, a.k, a.tau, a.prompt_id, a.start as start_a, b.start as start_b, count(*) as n_shared
    from members as a
    join members as b
        on
            b.condition = a.condition and b.k is not distinct from a.k and b.tau is not distinct from a.tau
            and b.prompt_id = a.prompt_id and b.start > a.start and b.sae_id = a.sae_id and b.feature_id = a.feature_id
    group by a.condition, a.k, a.tau, a.prompt_id, a.start, b.start
),

over_starts as (
    select
        a.condition, a.k, a.tau, a.prompt_id,
        avg(coalesce(s.n_shared, 0) / nullif(a.n_features + b.n_features - coalesce(s.n_shared, 0), 0)) as jaccard
    from set_sizes as a
    join set_sizes as b
        on
            b.condition = a.condition and b.k is not distinct from a.k and b.tau is not distinct from a.tau
            and b.prompt_id = a.prompt_id and b.start > a.start
    left join shared as s
        on
            s.condition = a.condition and s.k is not distinct from a.k and s.tau is not distinct from a.tau
            and s.prompt_id = a.prompt_id and s.start_a = a.start and s.start_b = b.start
    group by a.condition, a.k, a.tau, a.prompt_id
),

numbered as (
    select distinct prompt_id, (dense_rank() over (order by prompt_id) - 1) % 2 as half
    from found
),

of_halves as (
    select m.condition, m.k, m.tau, m.sae_id, m.feature_id, count(distinct n.half) as n_halves
    from members as m
    join numbered as n on n.prompt_id = m.prompt_id
    group by m.condition, m.k, m.tau, m.sae_id, m.feature_id
),

over_halves as (
    select condition, k, tau, count(*) filter (where n_halves = 2) / count(*) as jaccard
    from of_halves
    group by condition, k, tau
)

select condition, k, tau, 'starts' as over, prompt_id, jaccard
from over_starts
where jaccard is not null
union all
select condition, k, tau, 'halves' as over, null as prompt_id, jaccard
from over_halves
order by condition, k nulls first, tau nulls first, over, prompt_id nulls first
