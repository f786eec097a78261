-- How many decisions of Algorithm 1 lie within the noise floor of their threshold, so that rounding alone may turn them (R6).
--
-- One row for each tau. A decision is one step of a sequence: it accepts its block where the relative change of the probability of
-- a refusal token is at least tau. floor is the noise of such changes as a difference of log-odds, measured once per study: the model
-- in its dtype against float32 (dtype), and one prompt at a time against padded batches (batch). search_trace.noise is what it comes
-- to at a step, ablations.n_uncertain how many uncertain decisions made a set.
with steps as (
    select
        prompt_id, seed, step, p_refusal_token, noise,
        lag(p_refusal_token) over (partition by prompt_id, seed order by step) as before
    from search_trace
),

decisions as (
    select abs(before - p_refusal_token) / greatest(before, 1e-12) as change, noise
    from steps
    where step > 0
),

taus as (
    select distinct tau
    from ablations
    where stage = 'algorithm1' and tau is not null
)

select
    t.tau, count(*) as n_decisions, count(*) filter (where d.change >= t.tau) as n_accepted,
    if(count(d.noise) = 0, null, count(*) filter (where abs(d.change - t.tau) <= d.noise)) as n_uncertain,
    any_value(n.floor) as floor, any_value(n.dtype) as dtype, any_value(n.batch) as batch
from taus as t
cross join decisions as d
left join noise as n on true
group by t.tau
order by t.tau
