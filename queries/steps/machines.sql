-- Weights, scales and vectors of every model of interactions; the probe is a machine without vectors.
select model, sae_id, feature_id, weight, scale, vector
from fm_embeddings
union all
select 'probe', sae_id, feature_id, weight, scale, []
from probe_weights
order by all
