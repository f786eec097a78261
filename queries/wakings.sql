-- What wakes in each captured pass: features that are silent on every token of the clean prompt and fire while others are ablated.
--
-- Only SAEs that read above the lowest ablated site can, and only they are recorded: below, the pass is the clean one, up to rounding.
-- n_first counts the prompt's first token, n_template the template's other tokens, n_user the user's; those of a system's message or
-- an earlier answer are in n_tokens alone. What each pass stands for is in the table waking_passes.
--
-- $prompts prompts? = null: only these prompt_ids
with passes as (
    select ablation_id, prompt_id
    from waking_passes
    where $prompts is null or list_contains($prompts, prompt_id)
),

firing as (
    select distinct sae_id, feature_id, prompt_id
    from activations
),

woken as (
    select r.ablation_id, r.layer, r.sae_id, r.feature_id, p.prompt_id, r.pos, r.activation
    from reactivations as r
    join passes as p on p.ablation_id = r.ablation_id
    anti join firing as a on a.sae_id = r.sae_id and a.feature_id = r.feature_id and a.prompt_id = p.prompt_id
)

select
    w.ablation_id, w.sae_id, w.layer, w.feature_id,
    count(*) as n_tokens,
    count(*) filter (where w.pos = 0) as n_first,
    count(*) filter (where w.pos > 0 and t.role in ('bos', 'template')) as n_template,
    count(*) filter (where w.pos > 0 and t.role = 'user') as n_user,
    max(w.activation) as max_activation
from woken as w
join tokens as t on t.prompt_id = w.prompt_id and t.pos = w.pos
group by w.ablation_id, w.sae_id, w.layer, w.feature_id
order by w.ablation_id, w.layer, w.feature_id, w.sae_id
