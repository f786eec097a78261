-- The share of prompts that flip under each intervention, with Wilson's 95% interval over prompts (R5, R17, R21).
--
-- By the recipe's oracle. Of the target prompts those that are refused at baseline count, a prompt without an answer as a failure;
-- of the others those that are answered under the condition. Several draws of a prompt count as their mean.
--
-- $conditions conditions? = null: only these conditions, as none,random; null for all
-- $label compared_label? = null: which prompts; null for those of the target label
select a as condition, label, k, tau, n as n_prompts, estimate as rate, low, high
from comparisons
where
    kind = 'rate' and measure = 'flipped' and if($label is null, label in (select label from prompts where label_role = 'target'), label = $label)
    and ($conditions is null or list_contains($conditions, a))
order by condition, k nulls first, tau nulls first
