-- Stage 1 (R5): the top K features of each SAE by the cosine of their decoder row with a refusal direction.
--
-- Cosines are signed. Ties go to the lower feature_id.
--
-- $k integer = 10: features per SAE
-- $direction own|chosen = chosen: the direction of the feature's own layer, or the study's one direction (the paper)
-- $exclude_layers layers? = null: layers to leave out
with ranked as (
    select
        direction, layer, sae_id, feature_id, cosine,
        row_number() over (partition by sae_id order by cosine desc, feature_id) as rank
    from alignments
    where
        direction = $direction
        and ($exclude_layers is null or not list_contains($exclude_layers, layer))
    qualify rank <= $k
)

select direction, layer, sae_id, feature_id, rank, cosine
from ranked
order by layer, sae_id, rank
