-- The runs in which a feature was found to be causal, of all studies of this exact SAE and their versions.
--
-- One row per run and population: for how many target prompts the stages found the feature (see the question populations). is_current:
-- the run is one that plain table names show.
--
-- $layer layer: the feature's layer
-- $feature_id feature: the feature
-- $sae_id sae? = null: the feature's SAE, where its layer has several; null for whichever the layer has
select r.recipe, p.run_id, p.sae_id, p.population, p.n_prompts, p.run_id in (select run_id from runs) as is_current
from all_runs.populations as p
join all_runs.runs as r on r.run_id = p.run_id
where
    p.sae_id in (select sae_id from saes where layer = $layer and ($sae_id is null or sae_id = $sae_id))
    and p.feature_id = $feature_id
order by is_current desc, r.recipe, p.run_id, p.sae_id, p.population
