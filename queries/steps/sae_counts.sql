-- What the features of each SAE are read_by_run over, as n_tokens and n_prompts of `features` are: tokens but BOS, and prompts by role.
-- A run of version 1 did not write it beside its SAEs, but holds the prompts too. Null where a run's prompts are not there.
with prompts_read as (
    select
        run_id,
        count(*) filter (where label_role = 'target') as n_target_prompts,
        count(*) filter (where label_role = 'control') as n_control_prompts
    from prompts
    group by run_id
),

tokens_read as (
    select run_id, count(*) as n_tokens
    from tokens
    where role <> 'bos'
    group by run_id
),

read_by_run as (
    select
        s.sae_id,
        coalesce(s.n_tokens, t.n_tokens) as n_tokens,
        coalesce(s.n_target_prompts, p.n_target_prompts) as n_target_prompts,
        coalesce(s.n_control_prompts, p.n_control_prompts) as n_control_prompts
    from all_runs.saes as s
    left join tokens_read as t on t.run_id = s.run_id
    left join prompts_read as p on p.run_id = s.run_id
    where s.run_id in (select run_id from runs)
)

select
    sae_id,
    if(count(n_tokens) = count(*), sum(n_tokens), null)::bigint as n_tokens,
    if(count(n_target_prompts) = count(*), sum(n_target_prompts), null)::bigint as n_target_prompts,
    if(count(n_control_prompts) = count(*), sum(n_control_prompts), null)::bigint as n_control_prompts
from read_by_run
group by sae_id
