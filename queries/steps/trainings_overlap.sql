-- Overlap of the minimal sets of two trainings of the SAEs, prompt by prompt. The first row is the whole study's: distinct
-- features of all prompts.
with matched as (
    select t.prompt_hash, coalesce(m.sae_id, t.sae_id) as sae_id, coalesce(m.mine, -1 - t.feature_id) as feature_id
    from theirs as t
    left join matches as m on m.their_sae_id = t.sae_id and m.theirs = t.feature_id
),

both_sides as (
    select prompt_hash, sae_id, feature_id, 1 as mine, 0 as theirs from mine
    union all
    select prompt_hash, sae_id, feature_id, 0 as mine, 1 as theirs from matched
),

features as (
    select prompt_hash, sae_id, feature_id, sum(mine) as mine, sum(theirs) as theirs
    from both_sides
    where prompt_hash in (select prompt_hash from mine) and prompt_hash in (select prompt_hash from theirs)
    group by all
),

distinct_features as (
    select sae_id, feature_id, max(mine) as mine, max(theirs) as theirs
    from features
    group by all
)

select prompt_hash, avg((mine + theirs = 2)::integer) as jaccard
from features
group by prompt_hash
union all
select null as prompt_hash, avg((mine + theirs = 2)::integer) as jaccard
from distinct_features
order by prompt_hash nulls first
