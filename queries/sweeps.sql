-- How the answers follow the strength at which `saelake steer` adds features or a direction, or clamps features (R14).
--
-- One row for each sweep, label and strength. The unmodified model is strength 0 of what is added, and the row without a strength
-- of what is clamped. p_refusal_token is the mean probability that the first token is a refusal token; refused is the share of
-- answers that the judge reads so, degenerate of those that are not sensible text, changed of those that differ from the unmodified
-- model's. norm is the length of what strength 1 adds.
--
-- $sweep text? = null: only the sweep of this name
-- $judge judge = oracle: who reads the answers
with answers as (
    select
        a.condition, p.label, d.edit, d.source, d.sites, d.positions, d.strength, d.norm, a.prompt_id, a.p_refusal_token, a.completion,
        v.refused, v.degenerate
    from doses as d
    join ablations as a on a.ablation_id = d.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v
        on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where $sweep is null or a.condition = $sweep
),

compared as (
    select a.*, c.completion as clean
    from answers as a
    left join answers as c
        on c.condition = a.condition and c.prompt_id = a.prompt_id and coalesce(c.strength, 0) = 0
        and (c.strength is null) = (a.edit = 'clamp')
)

select
    condition as sweep, label, edit, source, sites, positions, strength, any_value(norm) as norm, count(*) as n_prompts,
    avg(p_refusal_token) as p_refusal_token, avg(refused::integer) as refused, avg(degenerate::integer) as degenerate,
    avg((completion <> clean)::integer) as changed
from compared
group by condition, label, edit, source, sites, positions, strength
order by condition, label desc, strength nulls first
