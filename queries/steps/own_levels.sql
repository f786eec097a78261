-- A level of each feature's activations: up to 1 a quantile, above that many times the largest. What never fires on a clean
-- prompt has those of ablated passes; what never fires at all is left out.
with chosen as (
    select unnest($sae_ids) as sae_id, unnest($feature_ids) as feature_id
),

clean as (
    select c.sae_id, c.feature_id, a.activation
    from chosen as c
    join activations as a on a.sae_id = c.sae_id and a.feature_id = c.feature_id
    join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
    where t.role <> 'bos'
),

woken as (
    select c.sae_id, c.feature_id, r.activation
    from chosen as c
    join reactivations as r on r.sae_id = c.sae_id and r.feature_id = c.feature_id
    join waking_passes as p on p.ablation_id = r.ablation_id and p.control is null
    anti join clean as a on a.sae_id = c.sae_id and a.feature_id = c.feature_id
),

own as (
    from clean
    union all
    from woken
)

select sae_id, feature_id, quantile_cont(activation, least($level, 1)) * greatest($level, 1) as value
from own
group by sae_id, feature_id
order by sae_id, feature_id
