-- The features that fire on at least k tokens of a prompt (R17, the baseline of O'Brien et al.).
--
-- $k integer = 2: tokens of the prompt on which it must fire
-- $prompt_id prompt? = null: only this prompt; null for every prompt
-- $prompts prompts? = null: only these prompt_ids
-- $exclude_layers layers? = null: layers to leave out
-- $bos boolean = false: whether BOS tokens count
with bos as (
    select prompt_id, pos
    from tokens
    where
        role = 'bos' and not $bos and ($prompt_id is null or prompt_id = $prompt_id)
        and ($prompts is null or list_contains($prompts, prompt_id))
),

copied as (
    select prompt_id, pos, layer, sae_id, feature_id
    from activations_by_prompt
    where prompt_id = $prompt_id and ($prompts is null or list_contains($prompts, prompt_id))
),

-- A row only where there is no copy by prompt to read: without it, the join below reads nothing.
uncopied as (
    select 1 as missing
    where not exists (select 1 from copied)
),

firings as (
    select prompt_id, pos, layer, sae_id, feature_id
    from copied
    union all
    select a.prompt_id, a.pos, a.layer, a.sae_id, a.feature_id
    from activations as a
    cross join uncopied
    where ($prompt_id is null or a.prompt_id = $prompt_id) and ($prompts is null or list_contains($prompts, a.prompt_id))
),

counts as (
    select f.prompt_id, f.layer, f.sae_id, f.feature_id, count(*) as n_tokens
    from firings as f
    anti join bos on bos.prompt_id = f.prompt_id and bos.pos = f.pos
    where $exclude_layers is null or not list_contains($exclude_layers, f.layer)
    group by f.prompt_id, f.layer, f.sae_id, f.feature_id
)

select prompt_id, layer, sae_id, feature_id, n_tokens
from counts
where n_tokens >= $k
order by prompt_id, layer, sae_id, feature_id
