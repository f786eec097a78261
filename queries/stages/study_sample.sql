-- Features for an annotation study (R19): critical ones by their number of categories, random ones that fire, and silent ones.
--
-- critical: of the population, so many features for each number of categories that they fire on. random: features of the same
-- layers that fire on the labelled prompts and that no stage of the search found. silent: features of these layers that fire on no
-- labelled prompt. Every feature has a random number that depends on seed, layer and feature_id only; the lowest are drawn, and rows
-- come in the order of a second one, so that their place shows nothing.
--
-- $population candidates|critical|stage3|stage3_new|redundant = stage3: whose features are critical
-- $mapping literal|user = literal: fires on a category: anywhere in its prompts, or on the user's tokens
-- $per_group integer = 10: critical features for each number of categories
-- $n_random integer = 23: random firing features
-- $n_silent integer = 7: silent features
-- $seed integer = 0: seed of the random numbers
with firing as (
    select
        sae_id, layer, feature_id,
        count(*) filter (where if($mapping = 'literal', n_literal, n_user) > 0) as n_categories
    from taxonomy
    group by sae_id, layer, feature_id
),

members as (
    select sae_id, layer, feature_id
    from populations
    where population = $population
),

layers as (
    select distinct layer
    from members
),

grouped as (
    select 'critical' as stratum, f.n_categories, f.sae_id, f.layer, f.feature_id
    from firing as f
    semi join members as m on m.sae_id = f.sae_id and m.feature_id = f.feature_id
    where f.n_categories > 0
    union all
    select 'random' as stratum, f.n_categories, f.sae_id, f.layer, f.feature_id
    from firing as f
    semi join layers as l on l.layer = f.layer
    anti join populations as p on p.sae_id = f.sae_id and p.feature_id = f.feature_id
    where f.n_categories > 0
    union all
    select 'silent' as stratum, 0 as n_categories, s.sae_id, s.layer, s.feature_id
    from features as s
    semi join layers as l on l.layer = s.layer
    anti join firing as f on f.sae_id = s.sae_id and f.feature_id = s.feature_id
    anti join populations as p on p.sae_id = s.sae_id and p.feature_id = s.feature_id
),

-- md5, not hash(): DuckDB may change its hash from one version to the next
lots as (
    select
        stratum, n_categories, sae_id, layer, feature_id,
        md5(concat_ws('/', $seed, 'draw', layer, feature_id)) as lot,
        md5(concat_ws('/', $seed, 'order', layer, feature_id)) as place
    from grouped
),

drawn as (
    select
        stratum, n_categories, sae_id, layer, feature_id, place,
        row_number() over (
            partition by stratum, if(stratum = 'critical', n_categories, 0)
            order by lot, layer, feature_id, sae_id
        ) as rank
    from lots
    qualify rank <= case stratum when 'critical' then $per_group when 'random' then $n_random else $n_silent end
)

select
    row_number() over (order by place, layer, feature_id, sae_id) - 1 as item,
    stratum, n_categories, sae_id, layer, feature_id
from drawn
order by item
