-- Which of the given features are woken: silent on every token of a clean prompt, firing on it while others are ablated (R13).
--
-- The clean activations are joined with those of ablated passes. n_prompts counts the captured prompts on which a feature
-- is woken, n_silent those on which it is silent when clean, whether it wakes or not; n_passes the ablated passes in
-- which it wakes, matched controls not counted. Of its n_tokens n_first are the prompt's first, n_template the template's others,
-- n_user the user's; those of a system's message or an earlier answer are none of these. Features that never wake are left out.
--
-- $features features: which features
-- $prompt_id prompt? = null: only on this prompt
-- $controls boolean = false: what wakes while matched controls are ablated, instead
with passes as (
    select ablation_id, prompt_id
    from waking_passes
    where ($prompt_id is null or prompt_id = $prompt_id) and (control is not null) = $controls
),

firing as (
    select distinct sae_id, feature_id, prompt_id
    from $features(activations)
),

fired as (
    select r.layer, r.sae_id, r.feature_id, p.prompt_id, r.ablation_id, r.pos, r.activation
    from $features(reactivations) as r
    join passes as p on p.ablation_id = r.ablation_id
),

woken as (
    select f.layer, f.sae_id, f.feature_id, f.prompt_id, f.ablation_id, f.pos, f.activation, t.role
    from fired as f
    anti join firing as a on a.sae_id = f.sae_id and a.feature_id = f.feature_id and a.prompt_id = f.prompt_id
    join tokens as t on t.prompt_id = f.prompt_id and t.pos = f.pos
),

captured as (
    select distinct prompt_id
    from passes
),

firing_counts as (
    select a.sae_id, a.feature_id, count(*) as n_firing
    from firing as a
    semi join captured as c on c.prompt_id = a.prompt_id
    group by a.sae_id, a.feature_id
)

select
    w.layer,
    w.sae_id,
    w.feature_id,
    count(distinct w.prompt_id) as n_prompts,
    (select count(*) from captured) - coalesce(any_value(n.n_firing), 0) as n_silent,
    count(distinct w.ablation_id) as n_passes,
    max(w.activation) as max_activation,
    count(*) as n_tokens,
    count(*) filter (where w.pos = 0) as n_first,
    count(*) filter (where w.pos > 0 and w.role in ('bos', 'template')) as n_template,
    count(*) filter (where w.pos > 0 and w.role = 'user') as n_user
from woken as w
left join firing_counts as n on n.sae_id = w.sae_id and n.feature_id = w.feature_id
group by w.layer, w.sae_id, w.feature_id
order by n_prompts desc, w.layer, w.sae_id, w.feature_id
