-- The features that fire on some prompts, BOS left out: on how many tokens, on how many of the last ones, and how strongly.
-- effect is what P(target) changes by when the feature is ablated alone, once that is measured.
--
-- $prompts prompts: the prompt_ids
-- $last_tokens integer = 5: how many tokens at a prompt's end are its last ones
with bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos' and list_contains($prompts, prompt_id)
),

ends as (
    select prompt_id, max(pos) - $last_tokens as before_last
    from tokens
    where list_contains($prompts, prompt_id)
    group by prompt_id
),

fired as (
    select
        a.prompt_id, a.sae_id, a.layer, a.feature_id,
        count(*) as n_tokens, count(*) filter (where a.pos > e.before_last) as n_last_tokens, max(a.activation) as max_activation
    from activations as a
    join ends as e on e.prompt_id = a.prompt_id
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
    where list_contains($prompts, a.prompt_id)
    group by a.prompt_id, a.sae_id, a.layer, a.feature_id
)

select f.*, s.p_target - s.p_clean as effect
from fired as f
left join single_effects as s
    on s.prompt_id = f.prompt_id and s.sae_id = f.sae_id and s.feature_id = f.feature_id
order by f.prompt_id, f.layer, f.sae_id, f.feature_id
