-- The activations of each feature of an SAE, BOS left out, from the weakest: what a histogram is made of.
with bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos'
)

select a.feature_id, list(a.activation order by a.activation) as activations
from activations as a
anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
where a.layer = $layer and a.sae_id = $sae_id
group by a.feature_id
