-- What the factorisation machine and the probe see of each prompt (R9): its features on the last tokens, as sparse triples.
--
-- One row for every feature that fires on one of the last tokens of a prompt, in the layers up to the chosen direction's.
-- number counts the features, from 0, by layer, sae_id and feature_id.
--
-- $tokens integer = 4: how many of the last tokens count
-- $aggregate max|mean|sum = max: how their activations become one value; silent tokens count as 0
-- $exclude_layers layers? = null: layers to leave out
-- $sets prompt_sets? = null: only prompts of these sets, by name, separated by commas
with last_tokens as (
    select prompt_id, n_tokens - $tokens as first_pos
    from prompts
    where $sets is null or list_contains($sets, set)
),

up_to as (
    select max(layer) as layer
    from directions
    where chosen
),

-- `features` cannot number them: it has the silent ones too
firing as (
    select
        a.prompt_id,
        a.layer,
        a.sae_id,
        a.feature_id,
        case $aggregate
            when 'max' then max(a.activation)
            when 'mean' then sum(a.activation) / $tokens
            when 'sum' then sum(a.activation)
        end as value
    from activations as a
    join last_tokens as t on t.prompt_id = a.prompt_id and a.pos >= t.first_pos
    where
        a.layer <= (select layer from up_to)
        and ($exclude_layers is null or not list_contains($exclude_layers, a.layer))
    group by a.prompt_id, a.layer, a.sae_id, a.feature_id
)

select
    prompt_id, dense_rank() over (order by layer, sae_id, feature_id) - 1 as number,
    layer, sae_id, feature_id, value::float as value
from firing
order by prompt_id, number
