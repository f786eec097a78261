-- What wakes in each captured pass: features that are silent on every token of the clean prompt and fire while others are ablated.
--
-- Only layers above the lowest ablated one can: below, the pass is the clean one, up to rounding. n_first counts the prompt's first
-- token, n_template the template's other tokens, n_user the user's. What each pass stands for is in the table waking_passes.
--
-- $prompts prompts? = null: only these prompt_ids
with lowest as (
    select a.ablation_id, a.prompt_id, min(f.layer) as layer
    from ablations as a
    semi join waking_passes as w on w.ablation_id = a.ablation_id
    join feature_sets as f on f.set_id = a.set_id
    where $prompts is null or list_contains($prompts, a.prompt_id)
    group by a.ablation_id, a.prompt_id
),

firing as (
    select distinct sae_id, feature_id, prompt_id
    from activations
),

woken as (
    select r.ablation_id, r.layer, r.sae_id, r.feature_id, l.prompt_id, r.pos, r.activation
    from reactivations as r
    join lowest as l on l.ablation_id = r.ablation_id and l.layer < r.layer
    anti join firing as a on a.sae_id = r.sae_id and a.feature_id = r.feature_id and a.prompt_id = l.prompt_id
)

select
    w.ablation_id, w.sae_id, w.layer, w.feature_id,
    count(*) as n_tokens,
    count(*) filter (where w.pos = 0) as n_first,
    count(*) filter (where w.pos > 0 and t.role <> 'user') as n_template,
    count(*) filter (where w.pos > 0 and t.role = 'user') as n_user,
    max(w.activation) as max_activation
from woken as w
join tokens as t on t.prompt_id = w.prompt_id and t.pos = w.pos
group by w.ablation_id, w.sae_id, w.layer, w.feature_id
order by w.ablation_id, w.layer, w.feature_id, w.sae_id
