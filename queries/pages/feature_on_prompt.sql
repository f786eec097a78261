-- Where given features fire on one prompt, and how strongly: what shades its tokens.
--
-- $prompt_id prompt: the prompt
-- $features features: which features
select a.layer, a.sae_id, a.feature_id, a.pos, a.activation
from $features(activations) as a
where a.prompt_id = $prompt_id
order by a.layer, a.sae_id, a.feature_id, a.pos
