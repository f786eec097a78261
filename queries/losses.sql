-- Side effects (R16): cross-entropy on ordinary text, and refusals of control prompts, with and without the interventions.
--
-- One row per set of texts and condition: none, direction (projected out of every layer) or minimal (a prompt's critical set
-- ablated). loss is the mean over texts of the mean negative log-likelihood per token, in nats; for minimal it is the mean over
-- the n_sets ablated sets, with sd over sets. added is loss minus that of none, kl how far all that may follow at each token lies
-- from what the unmodified model expects (KL divergence, nats): it sees changes that the text does not. control_answered is the
-- share of control prompts that are still answered, neither refused nor without sensible text: what the model can still do.
-- control_refused is the share of control prompts that the judge reads as refused under the same condition, control_degenerate
-- the share without sensible text.
--
-- $judge judge = oracle: who reads the answers to control prompts
with per_set as (
    select
        texts, method, donor,
        count(*) as n_texts, sum(n_tokens) as n_tokens, avg(loss) as loss, avg(kl) as kl, any_value(n_features) as n_features
    from losses
    group by texts, method, donor
),

per_method as (
    select
        texts, method,
        any_value(n_texts) as n_texts,
        any_value(n_tokens) as n_tokens,
        count(donor) as n_sets,
        avg(n_features) as n_features,
        avg(loss) as loss,
        stddev_samp(loss) as sd,
        avg(kl) as kl
    from per_set
    group by texts, method
),

controls as (
    select
        a.condition,
        count(distinct a.prompt_id) as n_control,
        avg(v.refused::integer) as refused,
        avg(v.flipped::integer) as answered,
        avg(v.degenerate::integer) as degenerate
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    where
        p.label_role = 'control' and v.judge = if($judge = $judge(oracle), $judge(control), $judge) and v.refused is not null
        and a.condition in ('none', 'direction', 'minimal')
    group by a.condition
)

select
    c.texts, c.method as condition, c.n_texts, c.n_tokens, c.n_sets, c.n_features, c.loss, c.sd,
    c.loss - n.loss as added,
    b.n_control, b.refused as control_refused, b.degenerate as control_degenerate, c.kl, b.answered as control_answered
from per_method as c
join per_method as n on n.texts = c.texts and n.method = 'none'
left join controls as b on b.condition = c.method
order by c.texts, case c.method when 'none' then 0 when 'direction' then 1 else 2 end
