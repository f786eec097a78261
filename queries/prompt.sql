-- One prompt, token by token, with the features that fire most on each.
--
-- Activations are compared as they are, also between layers, where the residual stream has grown; see `layer`. Ties go to the
-- lower layer, then the lower feature_id. A token on which nothing fires keeps one row without a feature.
--
-- $prompt_id prompt: the prompt, as a number or its digits
-- $n integer = 5: features per token
-- $layer layer? = null: only features of this layer
with copied as (
    select pos, layer, sae_id, feature_id, activation
    from activations_by_prompt
    where prompt_id = $prompt_id and ($layer is null or layer = $layer)
),

-- A row only where a run has no copy by prompt: without it, the join below reads nothing.
uncopied as (
    select 1 as missing
    where not exists (select 1 from copied)
),

firings as (
    select pos, layer, sae_id, feature_id, activation
    from copied
    union all
    select a.pos, a.layer, a.sae_id, a.feature_id, a.activation
    from activations as a
    cross join uncopied
    where a.prompt_id = $prompt_id and ($layer is null or a.layer = $layer)
),

ranked as (
    select
        pos, layer, sae_id, feature_id, activation,
        row_number() over (partition by pos order by activation desc, layer, sae_id, feature_id) as rank
    from firings
    qualify rank <= $n
)

select t.prompt_id, t.pos, t.token, t.role, r.rank, r.layer, r.sae_id, r.feature_id, r.activation
from tokens as t
left join ranked as r on r.pos = t.pos
where t.prompt_id = $prompt_id
order by t.pos, r.rank
