-- One feature in numbers, for its card: how it fires, how it tells the labels apart, and what audits of sets that hold it found.
--
-- recovered: of the target prompts on which a set that holds it was audited and took the behaviour away, the share on which a change
-- brought it back.
--
-- $layer layer: the feature's layer
-- $feature_id feature: the feature
-- $sae_id sae? = null: the feature's SAE, where its layer has several; null for whichever the layer has
with audited as (
    select r.set_id, r.prompt_id, bool_or(r.shown) as recovered
    from recoveries as r
    join prompts as p on p.prompt_id = r.prompt_id and p.label_role = 'target'
    where r.control is null and r.set_id is not null and r.kind <> 'random' and not r.shown_before
    group by r.set_id, r.prompt_id
),

holding as (
    select distinct set_id
    from feature_sets
    where
        set_id in (select set_id from audited)
        and layer = $layer and feature_id = $feature_id and ($sae_id is null or sae_id = $sae_id)
)

select
    f.layer, f.sae_id, f.feature_id, f.n_prompts, f.n_target, f.n_control, f.n_tokens, f.n_bos, f.mean_activation, f.max_activation,
    f.decoder_norm, s.auroc, s.q_value,
    (select avg(a.recovered::integer) from audited as a semi join holding as h on h.set_id = a.set_id) as recovered
from features as f
left join separations as s on s.sae_id = f.sae_id and s.feature_id = f.feature_id
where f.layer = $layer and f.feature_id = $feature_id and ($sae_id is null or f.sae_id = $sae_id)
order by f.layer, f.sae_id, f.feature_id
