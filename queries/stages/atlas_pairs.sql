-- The pairs of a prompt of which all were ablated: P(target) of the unmodified model, and without the two.
--
-- a and b are the places of the features among the prompt's active ones, in the order of layer, sae_id and feature_id.
--
-- $prompt_id prompt: the prompt
with active as (
    select sae_id, feature_id, row_number() over (order by layer, sae_id, feature_id) - 1 as place
    from single_effects
    where prompt_id = $prompt_id
)

select a.place as a, b.place as b, j.p_clean, j.p_target
from joint_effects as j
join active as a on a.sae_id = j.sae_id and a.feature_id = j.feature_id
join active as b on b.sae_id = j.sae_id_2 and b.feature_id = j.feature_id_2
where j.prompt_id = $prompt_id and j.drawn = 'last_tokens'
order by a.place, b.place
