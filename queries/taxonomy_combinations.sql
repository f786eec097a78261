-- How many features map to each category and to each combination of them (Figure 3, R18).
--
-- counted combination: a feature stands in one row, that of all categories which the mapping gives it. counted category: it stands
-- in the row of each. none: it fires on the labelled prompts, but the mapping gives it no category. share is of all these features.
--
-- $population candidates|critical|stage3|stage3_new|redundant? = null: only its features; all that fire if null
-- $mapping literal|user|specific = literal: non-zero anywhere (the paper), on the user's tokens, or more than expected by chance
-- $fdr number = 0.05: false discovery rate of specific
with mapped as (
    select
        t.sae_id, t.feature_id,
        list(t.category order by t.category) filter (
            where
                case $mapping
                    when 'literal' then t.n_literal > 0
                    when 'user' then t.n_user > 0
                    else t.q_value <= $fdr
                end
        ) as categories
    from taxonomy as t
    where
        $population is null
        or exists (
            from populations as p
            where p.population = $population and p.sae_id = t.sae_id and p.feature_id = t.feature_id
        )
    group by t.sae_id, t.feature_id
),

counted as (
    select
        'combination' as counted,
        coalesce(len(categories), 0) as n_categories,
        coalesce(array_to_string(categories, ' + '), 'none') as categories,
        count(*) as n_features
    from mapped
    group by all
    union all
    select 'category' as counted, 1 as n_categories, unnested.category as categories, count(*) as n_features
    from mapped
    cross join unnest(categories) as unnested(category)
    group by unnested.category
)

select counted, n_categories, categories, n_features, n_features / (select count(*) from mapped) as share
from counted
order by counted, n_categories, n_features desc, categories
