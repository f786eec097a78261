-- Are Stage 3's new features causes by themselves, and what do they do to the critical ones (R11)? One row per K and judge.
--
-- (a) Of the n_active prompts that flip when the critical features that fire are ablated, n_alone flip also when the top K new ones
-- alone are, alone_share of them; n_alone_up_to with this or a smaller K. Verdicts that do not apply count nowhere. (b) While the
-- new ones alone are ablated: the share of those critical features that switch off (mean over prompts, and the largest), and how
-- far the largest activation of the others falls (1: to nothing; below 0: it rises). in_reach: the share of them whose SAE reads behind
-- the lowest ablated site; the others cannot change, and count as unchanged.
--
-- $judge judge? = null: only this judge
-- $method method = minimal: whose critical sets
with answers as (
    select a.condition, a.method, a.part, a.control, a.k, v.judge, a.prompt_id, v.refused, v.flipped
    from verdicts as v
    join ablations as a on a.ablation_id = v.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    where p.label_role = 'target' and coalesce(a.draw, 0) = 0 and ($judge is null or v.judge = $judge)
),

refused_at_baseline as (
    select distinct judge, prompt_id
    from answers
    where condition = 'none' and refused
),

by_active as (
    select a.judge, a.prompt_id
    from answers as a
    semi join refused_at_baseline as r on r.judge = a.judge and r.prompt_id = a.prompt_id
    where a.method = $method and a.part = 'active' and a.control is null and a.flipped
),

alone as (
    select judge, k, prompt_id, flipped
    from answers
    where condition = 'stage3_alone'
),

first_alone as (
    select judge, prompt_id, min(k) as first_k
    from alone
    where flipped
    group by judge, prompt_id
),

sweep as (
    select distinct judge, k
    from alone
),

flips as (
    select
        s.judge, s.k,
        count(*) as n_active,
        count(*) filter (where a.flipped) as n_alone,
        count(*) filter (where f.first_k <= s.k) as n_alone_up_to
    from sweep as s
    join by_active as b on b.judge = s.judge
    left join alone as a on a.judge = s.judge and a.k = s.k and a.prompt_id = b.prompt_id
    left join first_alone as f on f.judge = b.judge and f.prompt_id = b.prompt_id
    where a.prompt_id is null or a.flipped is not null
    group by s.judge, s.k
),

depths as $step(site_depths),

lowest as (
    select a.prompt_id, a.k, min(d.depth) as depth
    from ablations as a
    join feature_sets as f on f.set_id = a.set_id
    join depths as d on d.sae_id = f.sae_id and d.place = 'writes'
    where a.condition = 'stage3_alone'
    group by a.prompt_id, a.k
),

of_prompts as (
    select
        c.k, c.prompt_id,
        avg((ablated = 0)::integer) as switched_off,
        avg(1 - ablated / clean) filter (where ablated > 0) as fall,
        avg((d.depth > l.depth)::integer) as in_reach
    from causal_links as c
    join depths as d on d.sae_id = c.sae_id and d.place = 'reads'
    join lowest as l on l.prompt_id = c.prompt_id and l.k = c.k
    group by c.k, c.prompt_id
),

links as (
    select
        k, count(*) as n_linked, avg(switched_off) as switched_off, max(switched_off) as most_switched_off,
        avg(fall) as fall_of_others, avg(in_reach) as in_reach
    from of_prompts
    group by k
)

select
    f.k, f.judge, f.n_active, f.n_alone, f.n_alone / nullif(f.n_active, 0) as alone_share, f.n_alone_up_to,
    l.n_linked, l.switched_off, l.most_switched_off, l.fall_of_others, l.in_reach
from flips as f
left join links as l on l.k = f.k
order by f.judge, f.k
