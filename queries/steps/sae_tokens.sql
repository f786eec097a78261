-- What n_tokens of `features` are counted over: the tokens but BOS that each SAE has read, in all its current runs.
-- A run of version 1 did not write it beside its SAEs, but holds its tokens too. Null where a run's tokens are not there.
with tokens_read as (
    select run_id, count(*) as n_tokens
    from tokens
    where role <> 'bos'
    group by run_id
),

read_by_run as (
    select s.sae_id, coalesce(s.n_tokens, t.n_tokens) as n_tokens
    from all_runs.saes as s
    left join tokens_read as t on t.run_id = s.run_id
    where s.run_id in (select run_id from runs)
)

select sae_id, if(count(n_tokens) = count(*), sum(n_tokens), null)::bigint as n_tokens
from read_by_run
group by sae_id
