-- Of features that fire on a prompt, those that tell something by what the lake knows of them: the live page lists them.
--
-- n_critical: prompts that the search found the feature critical for. These come first, then those that tell the labels apart best.
--
-- $features features: which features
-- $n integer = 20: how many
with critical as (
    select sae_id, feature_id, n_prompts
    from populations
    where population = 'critical'
)

select s.layer, s.sae_id, s.feature_id, s.auroc, c.n_prompts as n_critical
from $features(separations) as s
left join critical as c on c.sae_id = s.sae_id and c.feature_id = s.feature_id
order by n_critical desc nulls last, abs(s.auroc - 0.5) desc, s.layer, s.feature_id, s.sae_id
limit $n
