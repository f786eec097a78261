-- Features by layer, number, words of their explanations, category or population.
--
-- Every condition that is given must hold. words: each word stands in one of its explanations, in any case. category: it fires on
-- the category more than expected by chance, at a false discovery rate of 5%. Those that fire on most prompts come first.
--
-- $layer layer? = null: only this layer
-- $feature_id feature? = null: only this number
-- $sae_id sae? = null: only of this SAE
-- $words text? = null: words of an explanation, separated by spaces
-- $category category? = null: a category
-- $population candidates|critical|stage3|stage3_new|redundant? = null: only its features
-- $limit integer = 50: at most this many
with explained as (
    select sae_id, feature_id, string_agg(description, ' | ' order by number) as explanation
    from explanations
    group by sae_id, feature_id
),

found as (
    select
        f.layer, f.sae_id, f.feature_id, f.n_tokens, f.n_prompts, f.n_target, f.n_control, f.mean_activation, f.max_activation,
        e.explanation
    from features as f
    left join explained as e on e.sae_id = f.sae_id and e.feature_id = f.feature_id
    where
        ($layer is null or f.layer = $layer)
        and ($feature_id is null or f.feature_id = $feature_id)
        and ($sae_id is null or f.sae_id = $sae_id)
        and (
            $words is null
            or len(list_filter(
                string_split(lower($words), ' '),
                lambda word: not contains(lower(coalesce(e.explanation, '')), word)
            )) = 0
        )
        and (
            $category is null
            or (f.sae_id, f.feature_id) in (select (sae_id, feature_id) from taxonomy where category = $category and q_value <= 0.05)
        )
        and (
            $population is null
            or (f.sae_id, f.feature_id) in (select (sae_id, feature_id) from populations where population = $population)
        )
    order by f.n_prompts desc, f.layer, f.feature_id, f.sae_id
    limit $limit
)

select layer, sae_id, feature_id, n_tokens, n_prompts, n_target, n_control, mean_activation, max_activation, explanation
from found
order by n_prompts desc, layer, feature_id, sae_id
