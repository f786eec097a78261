-- One prompt, token by token, with the features that fire most on each.
--
-- Activations are compared as they are, also between layers, where the residual stream has grown; see `layer`. Ties go to the
-- lower layer, then the lower feature_id. A token on which nothing fires keeps one row without a feature.
--
-- $prompt_id integer: the prompt, as a number or its digits
-- $n integer = 5: features a token
-- $layer integer? = null: only features of this layer
with ranked as (
    select
        pos, layer, sae_id, feature_id, activation,
        row_number() over (partition by pos order by activation desc, layer, sae_id, feature_id) as rank
    from activations
    where prompt_id = $prompt_id and ($layer is null or layer = $layer)
    qualify rank <= $n
)

select t.prompt_id, t.pos, t.token, t.role, r.rank, r.layer, r.sae_id, r.feature_id, r.activation
from tokens as t
left join ranked as r on r.pos = t.pos
where t.prompt_id = $prompt_id
order by t.pos, r.rank
