-- The counts behind the waking graph: on how many prompts does ablating a source wake a feature, and what would its controls do?
--
-- The source is one critical feature, or a prompt's whole critical set (null: the first minimal set). chances has one entry a
-- prompt with matched controls: of the passes that are compared there, the source's own and its controls', the share in which the
-- feature wakes. Were the source one of its controls, it would wake the feature with this chance. Prompts on which the feature
-- wakes in no pass cannot distinguish sources from controls, and have no entry; edges of which this holds everywhere are left out.
with passes as (
    select ablation_id, prompt_id, source_sae_id, source_layer, source_feature_id, control
    from waking_passes
    where method is null or (method = 'minimal' and start = 0)
),

compared as (
    select prompt_id, source_sae_id, source_layer, source_feature_id, count(*) as n_passes
    from passes
    group by prompt_id, source_sae_id, source_layer, source_feature_id
),

sources as (
    select
        source_sae_id, source_layer, source_feature_id,
        count(*) as n_prompts, count(*) filter (where n_passes > 1) as n_tested
    from compared
    group by source_sae_id, source_layer, source_feature_id
),

trials as (
    select
        p.source_sae_id, p.source_feature_id, w.sae_id, w.layer, w.feature_id, p.prompt_id,
        count(*) as n_passes_woken,
        bool_or(p.control is null) as woken,
        coalesce(sum(w.n_tokens) filter (where p.control is null), 0) as n_tokens,
        coalesce(sum(w.n_first) filter (where p.control is null), 0) as n_first,
        coalesce(sum(w.n_template) filter (where p.control is null), 0) as n_template,
        coalesce(sum(w.n_user) filter (where p.control is null), 0) as n_user,
        max(w.max_activation) filter (where p.control is null) as max_activation
    from passes as p
    join wakings as w on w.ablation_id = p.ablation_id
    group by p.source_sae_id, p.source_feature_id, w.sae_id, w.layer, w.feature_id, p.prompt_id
)

select
    t.source_sae_id,
    any_value(s.source_layer) as source_layer,
    t.source_feature_id,
    t.sae_id,
    t.layer,
    t.feature_id,
    any_value(s.n_prompts) as n_prompts,
    any_value(s.n_tested) as n_tested,
    count(*) filter (where t.woken) as n_woken,
    count(*) filter (where t.woken and c.n_passes > 1) as n_woken_tested,
    sum(t.n_tokens) as n_tokens,
    sum(t.n_first) as n_first,
    sum(t.n_template) as n_template,
    sum(t.n_user) as n_user,
    avg(t.max_activation) as mean_activation,
    coalesce(
        list(t.n_passes_woken / c.n_passes order by t.prompt_id) filter (where c.n_passes > 1), []
    ) as chances
from trials as t
join compared as c
    on c.prompt_id = t.prompt_id
    and c.source_sae_id is not distinct from t.source_sae_id
    and c.source_feature_id is not distinct from t.source_feature_id
join sources as s
    on s.source_sae_id is not distinct from t.source_sae_id
    and s.source_feature_id is not distinct from t.source_feature_id
group by t.source_sae_id, t.source_feature_id, t.sae_id, t.layer, t.feature_id
order by
    source_layer nulls first, t.source_feature_id nulls first, t.source_sae_id nulls first,
    t.layer, t.feature_id, t.sae_id
