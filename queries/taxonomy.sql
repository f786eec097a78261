-- The categories of each feature (R18): on which harms it fires, how often, and whether more than on others.
--
-- One row per feature and category. literal_rate and user_rate: shares of the category's prompts on which it fires anywhere, and on
-- one of the user's tokens; token_rate: share of the user's tokens there. specific: it fires on more of the category's prompts
-- than expected by chance, at this false discovery rate. n_categories counts the categories that the mapping gives the feature:
-- literal and user as in the paper (fires at least once), specific by the test.
--
-- $population candidates|critical|stage3|stage3_new|redundant? = null: only its features; all that fire if null
-- $mapping literal|user|specific = user: what gives a feature a category
-- $fdr number = 0.05: false discovery rate of specific
-- $layer layer? = null: only this layer
with rows_of as (
    select
        t.layer, t.sae_id, t.feature_id, t.category, t.n_prompts, t.n_literal, t.n_user,
        t.n_literal / t.n_prompts as literal_rate,
        t.n_user / t.n_prompts as user_rate,
        t.n_user_tokens / nullif(t.n_category_tokens, 0) as token_rate,
        t.p_value, t.q_value,
        t.q_value <= $fdr as specific,
        case $mapping
            when 'literal' then t.n_literal > 0
            when 'user' then t.n_user > 0
            else t.q_value <= $fdr
        end as is_mapped
    from taxonomy as t
    where
        ($layer is null or t.layer = $layer)
        and (
            $population is null
            or exists (
                from populations as p
                where p.population = $population and p.sae_id = t.sae_id and p.feature_id = t.feature_id
            )
        )
)

select
    layer, sae_id, feature_id, category, n_prompts, n_literal, n_user, literal_rate, user_rate, token_rate,
    p_value, q_value, specific, is_mapped,
    count(*) filter (where is_mapped) over (partition by sae_id, feature_id) as n_categories
from rows_of
order by layer, feature_id, sae_id, category
