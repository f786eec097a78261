-- How often a small change of the residual stream brings the behaviour back while a set that flips the prompt is held ablated.
--
-- One row per budget (how long the change is, relative to the stream that it changes) and kind of change. free: any; orthogonal: what
-- leaves the readings of the set's features as they were; features: within the decoder rows of other features that fire; error: within
-- what the SAE does not reconstruct; random: a random one. Of n_prompts that do not show the behaviour while the set is held, n_recovered
-- do with a change; 95% intervals, families of prompts as clusters. source none: nothing is held; control random: as many random active
-- features. On control prompts, which never show the behaviour, the rate is what changes bring about by themselves. `saelake audit`
-- makes it.
--
-- $source minimal|top_k|common|none? = null: only this source of sets
-- $budget number? = null: only this budget
-- $by_layer boolean = false: by the changed site's layer; false: at any of the sites
select label_role, source, control, layer, kind, budget, n_prompts, n_recovered, rate, low, high
from recovery_rates
where
    ($source is null or source = $source)
    and ($budget is null or abs(budget - $budget) < 1e-6)
    and (layer is not null) = $by_layer
order by label_role desc, source, control nulls first, layer, kind, budget
