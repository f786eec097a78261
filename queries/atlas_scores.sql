-- Which methods would have named what matters: recall and rank correlation of each against the atlas.
--
-- finds causes: features without which P(target) falls; finds interactions: pairs whose joint effect differs from the sum of the two
-- alone; interactions_log_odds: the same where effects are those on the log-odds of P(target), in which the softmax's curve is no
-- interaction. Pairs of which P(target), clean, without either or without both, is nearer to 0 or 1 than 1e-5 are left out of it.
-- recall is the share of the true ones among the first k that a method names, of the k at most that there are; means over prompts,
-- 95% intervals resampled by family. What a method cannot name counts against it too: machines, probe and searches name nothing in the
-- layers that the recipe leaves out of candidates. fm_* and probe rank by weights, ..._size by the size of these, which are the
-- same on every prompt; ..._contribution by what these add to the model's logit on the prompt, from how strongly features fire there.
-- n_evaluations are passes per prompt beyond those of the study. `saelake atlas` makes it.
--
-- $k integer? = null: only recall at this k, and rank correlations
select finds, measure, k, method, n_prompts, mean, low, high, n_evaluations
from method_scores
where $k is null or k is null or k = $k
order by finds, measure desc, k, mean desc, method
