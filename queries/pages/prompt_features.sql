-- The features that fire on one prompt, for the explorer, with what is known of them there; BOS is left out.
--
-- effect: what P(target) falls by on this prompt where it alone is ablated, from the atlas; auroc over all prompts. Those with an effect
-- come first, the largest first, then those that tell the labels apart best.
--
-- $prompt_id prompt: the prompt
-- $n integer = 30: at most this many
with copied as (
    select pos, layer, sae_id, feature_id, activation
    from activations_by_prompt
    where prompt_id = $prompt_id
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
    where a.prompt_id = $prompt_id
),

here as (
    select f.layer, f.sae_id, f.feature_id, count(*) as n_tokens, max(f.activation) as max_activation
    from firings as f
    join tokens as t on t.prompt_id = $prompt_id and t.pos = f.pos and t.role <> 'bos'
    group by f.layer, f.sae_id, f.feature_id
),

critical as (
    select distinct sae_id, feature_id
    from critical_features
    where prompt_id = $prompt_id and method = 'minimal'
)

select
    h.layer, h.sae_id, h.feature_id, h.n_tokens, h.max_activation, e.p_clean - e.p_target as effect, s.auroc,
    c.feature_id is not null as is_critical
from here as h
left join single_effects as e
    on e.prompt_id = $prompt_id and e.sae_id = h.sae_id and e.feature_id = h.feature_id
left join separations as s on s.sae_id = h.sae_id and s.feature_id = h.feature_id
left join critical as c on c.sae_id = h.sae_id and c.feature_id = h.feature_id
order by is_critical desc, effect desc nulls last, abs(s.auroc - 0.5) desc nulls last, h.layer, h.feature_id, h.sae_id
limit $n
