-- How many sources of waking have matched controls: others that fire where they do, about as strongly, in the same SAE (R13).
--
-- One row per layer of single features of minimal sets that fire on their prompt, and one for whole sets (layer null). A source has no
-- control where the recipe asks for none (waking.controls), or no feature within its waking.overlap and waking.similarity is left:
-- candidates and critical features are no controls, and a feature controls one source of a prompt alone. Then it is in no test of
-- waking_edges, and counts as n_unmatched. controls is the mean number of controls of those that are matched.
with sources as (
    select prompt_id, source_layer, source_sae_id, source_feature_id, count(control) as n_controls
    from waking_passes
    where method is null or (method = 'minimal' and start = 0)
    group by prompt_id, source_layer, source_sae_id, source_feature_id
)

select
    source_layer as layer,
    count(*) as n_sources,
    count(*) filter (where n_controls > 0) as n_matched,
    count(*) filter (where n_controls = 0) as n_unmatched,
    avg(n_controls) filter (where n_controls > 0) as controls
from sources
group by source_layer
order by source_layer nulls last
