-- The features that fire on at least k tokens of a prompt (R17, the baseline of O'Brien et al.).
--
-- $k integer = 2: tokens of the prompt on which it must fire
-- $prompt_id integer? = null: only this prompt; null for every prompt
-- $exclude_layers integers? = null: layers to leave out
-- $bos boolean = false: whether BOS tokens count
with bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos' and not $bos
),

counts as (
    select a.prompt_id, a.layer, a.sae_id, a.feature_id, count(*) as n_tokens
    from activations as a
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
    where
        ($prompt_id is null or a.prompt_id = $prompt_id)
        and ($exclude_layers is null or not list_contains($exclude_layers, a.layer))
    group by a.prompt_id, a.layer, a.sae_id, a.feature_id
)

select prompt_id, layer, sae_id, feature_id, n_tokens
from counts
where n_tokens >= $k
order by prompt_id, layer, sae_id, feature_id
