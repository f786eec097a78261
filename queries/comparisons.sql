-- Every rate with its interval, every comparison with its test, and how stable found sets are (R21).
--
-- kind rate: the share of prompts (or answers, averaged over draws) that flip, or of test prompts that a model gets right, with
-- Wilson's 95% interval over prompts. kind comparison: a against b on the same prompts; p_holm is corrected over all comparisons
-- of the same measure. The columns _families take prompts that are alike (the recipe's family, a wording) as one observation:
-- low_families to high_families is the interval over families, p_families keeps one sign for all prompts of a family. Without
-- families they are null. measure flipped_held_out is the rate over the prompts from which no direction was made or chosen, by
-- prompt_hash; it stands where these are not all prompts. stage3 is compared with what fires of the first start's sets, on which
-- it builds; the rate of that name is over all starts. kind stability: mean Jaccard index of the sets found again. The
-- documentation of the table's columns says more.
--
-- $rows rate|comparison|stability|all = comparison: which rows
-- $measure measure? = null: only this measure: flipped, flipped_held_out, p_refusal_token, correct, jaccard
-- $label compared_label? = null: only prompts of this label, or all: the rows about models
-- $condition compared_like = %: a or b is like this pattern of `like`
select
    kind, measure, label, a, b, k, tau, n, estimate, low, high, test, p, p_holm, effect, effect_measure,
    n_families, low_families, high_families, p_families, p_families_holm
from comparisons
where
    ($rows = 'all' or kind = $rows)
    and ($measure is null or measure = $measure)
    and ($label is null or label = $label)
    and (a like $condition or b like $condition)
order by kind, measure, label, a, b, k nulls first, tau nulls first
