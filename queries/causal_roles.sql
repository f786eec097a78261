-- The runs in which given features were found to be causal, of all studies and versions in the lake.
--
-- One row a run and population: for how many harmful prompts the stages found the feature (see the question populations). is_current:
-- the run is one that plain table names show.
--
-- $features features: which features
select
    f.layer, f.sae_id, f.feature_id, r.recipe, p.run_id, p.population, p.n_prompts,
    p.run_id in (select run_id from runs) as is_current
from $features(features) as f
join all_runs.populations as p on p.sae_id = f.sae_id and p.feature_id = f.feature_id
join all_runs.runs as r on r.run_id = p.run_id
order by f.layer, f.sae_id, f.feature_id, is_current desc, r.recipe, p.run_id, p.population
