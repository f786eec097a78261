-- How often, how strongly and on what each feature fires. BOS tokens are left out.
--
-- rate is the share of the tokens that its SAE has read on which it fires; mean and max are over the tokens on which it fires. target
-- and control are the shares of the prompts of that label on which it fires, difference is target - control; n_prompts counts all
-- labels.
-- Rows come in descending order of `order_by` (difference by its size, whatever its sign), ties by layer and feature_id.
--
-- $layer layer? = null: only this layer
-- $min_prompts integer = 1: only features that fire on at least this many prompts
-- $order_by difference|rate|mean|max|prompts = difference: what comes first
-- $limit integer? = 100: at most this many rows; null for all
with tokens_seen as $step(sae_tokens),

prompts_of_runs as (
    select
        run_id,
        count(*) filter (where label_role = 'target') as n_target_prompts,
        count(*) filter (where label_role = 'control') as n_control_prompts
    from prompts
    group by run_id
),

-- a run of version 1 did not write them beside its SAEs, but holds its prompts too
prompts_by_run as (
    select
        s.sae_id,
        coalesce(s.n_target_prompts, p.n_target_prompts) as n_target_prompts,
        coalesce(s.n_control_prompts, p.n_control_prompts) as n_control_prompts
    from all_runs.saes as s
    left join prompts_of_runs as p on p.run_id = s.run_id
    where s.run_id in (select run_id from runs)
),

prompts_read as (
    select
        sae_id,
        if(count(n_target_prompts) = count(*), sum(n_target_prompts), null) as n_target_prompts,
        if(count(n_control_prompts) = count(*), sum(n_control_prompts), null) as n_control_prompts
    from prompts_by_run
    group by sae_id
),

shares as (
    select
        f.layer,
        f.sae_id,
        f.feature_id,
        f.n_tokens,
        f.n_tokens / nullif(t.n_tokens, 0) as rate,
        f.mean_activation,
        f.max_activation,
        f.n_prompts,
        f.n_target,
        f.n_control,
        f.n_target / nullif(p.n_target_prompts, 0) as target,
        f.n_control / nullif(p.n_control_prompts, 0) as control
    from features as f
    join tokens_seen as t on t.sae_id = f.sae_id
    join prompts_read as p on p.sae_id = f.sae_id
    where ($layer is null or f.layer = $layer) and f.n_prompts >= $min_prompts
)

select
    layer, sae_id, feature_id, n_tokens, rate, mean_activation, max_activation,
    n_prompts, n_target, n_control, target, control, target - control as difference
from shares
order by
    case $order_by
        when 'difference' then abs(target - control)
        when 'rate' then rate
        when 'mean' then mean_activation
        when 'max' then max_activation
        when 'prompts' then n_prompts
    end desc nulls last,
    layer, sae_id, feature_id
limit $limit
