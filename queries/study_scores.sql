-- What people say of each feature of an annotation study beside what it fires on (R19).
--
-- majority: the categories that more than half of those who answered chose. truth: those that the mapping gives the feature. score:
-- the share of the true categories that the majority has; without a true one 1 if the majority chose None, else 0. precision: the
-- share of the majority's categories that are true, null where it has none (extra ones cost nothing in score).
--
-- $study annotation_study: the annotation study
-- $mapping literal|user|specific = literal: what gives a feature a true category
-- $none text = None: what the answer is called that no category fits
-- $fdr number = 0.05: false discovery rate of specific
with voted as (
    select
        item, stratum, sae_id, layer, feature_id, category,
        count(*) as n_annotators,
        count(*) filter (where chosen) > count(*) / 2 as is_chosen
    from annotations
    where study = $study
    group by item, stratum, sae_id, layer, feature_id, category
),

judged as (
    select
        v.item, v.stratum, v.sae_id, v.layer, v.feature_id, v.category, v.n_annotators, v.is_chosen,
        coalesce(
            case $mapping
                when 'literal' then t.n_literal > 0
                when 'user' then t.n_user > 0
                else t.q_value <= $fdr
            end,
            false
        ) as is_true
    from voted as v
    left join taxonomy as t on t.sae_id = v.sae_id and t.feature_id = v.feature_id and t.category = v.category
),

summed as (
    select
        item, stratum, sae_id, layer, feature_id,
        max(n_annotators) as n_annotators,
        coalesce(list(category order by category) filter (where is_chosen), []) as majority,
        coalesce(list(category order by category) filter (where is_true), []) as truth,
        count(*) filter (where is_chosen and is_true) as n_hits,
        count(*) filter (where is_true) as n_true,
        count(*) filter (where is_chosen and category <> $none) as n_chosen,
        bool_or(is_chosen and category = $none) as is_none
    from judged
    group by item, stratum, sae_id, layer, feature_id
)

select
    item, stratum, layer, sae_id, feature_id, n_annotators, majority, truth,
    if(n_true > 0, n_hits / n_true, is_none::integer::double) as score,
    n_hits / nullif(n_chosen, 0) as precision
from summed
order by item
