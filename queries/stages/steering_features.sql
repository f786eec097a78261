-- The features that steering clamps (R14): the redundant ones, or the critical ones, those of most prompts first.
--
-- redundant: critical features that are silent on their prompt and wake while the active ones of their set are ablated.
--
-- $features_are redundant|critical = redundant: which
-- $n integer = 10: at most this many
with chosen as (
    select f.layer, f.sae_id, f.feature_id, f.prompt_id
    from critical_features as f
    where $features_are = 'critical'
    union
    select f.layer, f.sae_id, f.feature_id, f.prompt_id
    from critical_features as f
    join waking_passes as p
        on p.prompt_id = f.prompt_id and p.method = f.method and p.start = f.start and p.control is null
    join wakings as w on w.ablation_id = p.ablation_id and w.sae_id = f.sae_id and w.feature_id = f.feature_id
    where $features_are = 'redundant' and f.n_tokens = 0
)

select layer, sae_id, feature_id, count(distinct prompt_id) as n_prompts
from chosen
group by layer, sae_id, feature_id
order by n_prompts desc, layer, feature_id, sae_id
limit $n
