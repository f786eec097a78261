-- The graph "ablating A wakes B" over all prompts: the edges that matched controls do not explain (R13).
--
-- The source A is one critical feature, or a prompt's whole critical set (null). n_woken of n_prompts ablations of A wake B, which
-- is silent on these prompts otherwise; on the n_tested with controls, expected are those that would if A were one of them.
-- first, template and user are the shares of woken tokens that are the prompt's first, other template tokens, and the user's.
-- p_value is exact and one-sided, given how many of source and controls wake B on each prompt; q_value is the smallest
-- false discovery rate (Benjamini and Hochberg) at which the edge is reported.
--
-- $q number? = 0.05: only edges with at most this q_value; null for all
-- $sources one|set|any = one: edges from single features, from whole sets, or both
select
    source_layer, source_sae_id, source_feature_id, layer, sae_id, feature_id,
    n_prompts, n_woken, n_tested, n_woken_tested, expected, mean_activation,
    n_first / nullif(n_tokens, 0) as first,
    n_template / nullif(n_tokens, 0) as template,
    n_user / nullif(n_tokens, 0) as user,
    p_value, q_value
from waking_edges
where
    ($q is null or q_value <= $q)
    and case $sources
        when 'one' then source_feature_id is not null
        when 'set' then source_feature_id is null
        else true
    end
order by q_value, p_value, source_layer nulls first, source_feature_id, source_sae_id, layer, feature_id, sae_id
