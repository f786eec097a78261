-- Backup features: they wake while a source is ablated that does not flip alone, and ablating them with it flips the prompt (R13).
--
-- One row per feature that is a backup on some prompt. n_backup counts the prompts on which it flips with a source by itself, or is one
-- of a smallest part of what wakes there that does; n_alone those of them on which it does by itself. n_woken counts the prompts on
-- which it wakes while a source is ablated at all: where that is much more, it mostly wakes without standing in for anything.
-- p_refusal_token is the mean probability of a refusal token while it and its source are ablated. sources are the single features
-- that it stands in for, as sae_id:feature_id.
with found as (
    select
        sae_id, layer, feature_id, prompt_id, flips, p_refusal_token,
        source_sae_id || ':' || source_feature_id as source
    from backups
    where flips or is_needed
),

woken as (
    select w.sae_id, w.feature_id, count(distinct p.prompt_id) as n_woken
    from wakings as w
    join waking_passes as p on p.ablation_id = w.ablation_id and p.control is null
    group by w.sae_id, w.feature_id
),

counted as (
    select
        sae_id, layer, feature_id,
        count(distinct prompt_id) as n_backup,
        count(distinct prompt_id) filter (where flips) as n_alone,
        avg(p_refusal_token) as p_refusal_token
    from found
    group by sae_id, layer, feature_id
),

stood_in as (
    select distinct sae_id, feature_id, source
    from found
    where source is not null
),

sources as (
    select sae_id, feature_id, string_agg(source, ', ' order by source) as sources
    from stood_in
    group by sae_id, feature_id
)

select
    c.layer, c.sae_id, c.feature_id, c.n_backup, c.n_alone, w.n_woken, c.p_refusal_token,
    coalesce(s.sources, '') as sources
from counted as c
left join sources as s on s.sae_id = c.sae_id and s.feature_id = c.feature_id
join woken as w on w.sae_id = c.sae_id and w.feature_id = c.feature_id
order by c.n_backup desc, c.n_alone desc, c.layer, c.feature_id, c.sae_id
