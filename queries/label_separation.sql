-- Which features tell the target label from the control label best, beyond chance.
--
-- auroc is the chance that a feature's strongest activation in a prompt of the target label is larger than in one of the
-- control label, ties half: 1 and 0 tell them apart completely, 0.5 not at all. p_value is that of Mann and
-- Whitney's test, q_value the same after Benjamini and Hochberg's correction over all features that fire. Prompts of all splits
-- count: take the features to prompts that chose nothing before you believe a single one.
-- Rows come in descending order of |auroc - 0.5|, ties by layer and feature_id.
--
-- $fires_on any|target|control = any: only features that fire more on that label
-- $max_q number = 0.05: only features with at most this q_value
-- $layer layer? = null: only this layer
-- $limit integer? = 100: at most this many rows; null for all
select
    s.layer, s.sae_id, s.feature_id, s.auroc, s.p_value, s.q_value, s.n_fired_target, s.n_target, s.n_fired_control, s.n_control,
    f.max_activation
from separations as s
left join features as f on f.sae_id = s.sae_id and f.feature_id = s.feature_id
where
    s.q_value <= $max_q
    and ($layer is null or s.layer = $layer)
    and case $fires_on when 'target' then s.auroc > 0.5 when 'control' then s.auroc < 0.5 else true end
order by abs(s.auroc - 0.5) desc, s.layer, s.sae_id, s.feature_id
limit $limit
