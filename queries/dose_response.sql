-- How the answers follow the value that features are held at: the dose response of clamping (R14).
--
-- One row for each part of the answer over which the features are held, and value; 0 is ablation, and the row without a value is the
-- unmodified model on the same prompts. p_refusal_token is the mean probability that the first token is a refusal token, refused
-- the share of answers that the judge reads so, degenerate of those that are not sensible text, changed of those that differ from the
-- unmodified model's.
--
-- $judge judge = oracle: who reads the answers
with answers as (
    select
        a.prompt_id, a.method, a.part, a.set_id, a.p_refusal_token, a.completion, v.refused, v.degenerate
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    where v.refused is not null and v.judge = $judge(p)
),

doses as (
    select set_id, any_value(value) as value, count(*) as n_features
    from feature_sets
    group by set_id
    having count(distinct value) = 1
),

held as (
    select
        a.prompt_id, a.part as held_over, d.value, d.n_features,
        a.p_refusal_token, a.completion, a.refused, a.degenerate
    from answers as a
    join doses as d on d.set_id = a.set_id
    where a.method = 'clamp' and a.part in ('first_token', 'all_tokens')
),

clean as (
    select prompt_id, any_value(p_refusal_token) as p_refusal_token, any_value(completion) as completion,
        bool_or(refused) as refused, bool_or(degenerate) as degenerate
    from answers
    where method = 'none'
    group by prompt_id
),

all_answers as (
    select h.*, c.completion as clean
    from held as h
    join clean as c on c.prompt_id = h.prompt_id
    union all
    select c.prompt_id, 'nothing', null, 0, c.p_refusal_token, c.completion, c.refused, c.degenerate, c.completion
    from clean as c
    semi join held as h on h.prompt_id = c.prompt_id
)

select
    held_over, value, count(distinct prompt_id) as n_prompts, count(*) as n_answers, avg(n_features) as n_features,
    avg(p_refusal_token) as p_refusal_token, avg(refused::integer) as refused, avg(degenerate::integer) as degenerate,
    avg((completion <> clean)::integer) as changed
from all_answers
group by held_over, value
order by held_over = 'nothing' desc, held_over, value
