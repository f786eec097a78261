-- Each SAE at a glance, for the explorer: how its features tell the labels apart, and how many of them the search found.
--
-- counts: features that fire by auroc, in bins of equal width from 0 to 1.
--
-- $bins integer = 20: how many bins
with binned as (
    select sae_id, least(floor(auroc * $bins), $bins - 1)::integer as bin, count(*) as n
    from separations
    group by sae_id, bin
),

counts as (
    select s.sae_id, list(coalesce(n.n, 0) order by b.bin) as counts
    from saes as s
    cross join range($bins) as b(bin)
    left join binned as n on n.sae_id = s.sae_id and n.bin = b.bin
    group by s.sae_id
),

firing as (
    select sae_id, count(*) as n_firing
    from separations
    group by sae_id
),

found as (
    select sae_id, count(distinct feature_id) as n_critical
    from populations
    where population = 'critical'
    group by sae_id
)

select
    s.layer, s.sae_id, s.width, coalesce(f.n_firing, 0) as n_firing, coalesce(p.n_critical, 0) as n_critical, c.counts
from saes as s
join counts as c on c.sae_id = s.sae_id
left join firing as f on f.sae_id = s.sae_id
left join found as p on p.sae_id = s.sae_id
order by s.layer, s.sae_id
