-- What ablating each active feature alone does to P(target): over the refused prompts, the largest fall first.
--
-- n_prompts: on which it fires; n_flipped: of these, whose first token is no longer a target token without it. `saelake atlas` makes it.
--
-- $top integer = 20: how many features
select
    layer, sae_id, feature_id, count(*) as n_prompts, count(*) filter (where flipped) as n_flipped,
    avg(p_clean - p_target) as mean_fall, max(p_clean - p_target) as largest_fall, min(p_clean - p_target) as smallest_fall
from single_effects
group by layer, sae_id, feature_id
order by mean_fall desc, layer, sae_id, feature_id
limit $top
