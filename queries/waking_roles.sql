-- Where features wake: at the prompt's first token, at other tokens of the template, at the user's (R13).
--
-- One row for single critical features, for each method's whole sets, and for their matched controls. n_woken counts (pass,
-- feature) pairs, per_pass their mean per pass; at_first, at_template and at_user are the shares of these pairs that fire on at least
-- one such token (template: the first token left out), tokens_first, tokens_template and tokens_user the shares of woken tokens.
with passes as (
    select
        ablation_id, prompt_id,
        coalesce(method, 'one') as source,
        control is not null as is_control
    from waking_passes
)

select
    p.source,
    p.is_control,
    count(distinct p.prompt_id) as n_prompts,
    count(distinct p.ablation_id) as n_passes,
    count(w.feature_id) as n_woken,
    count(w.feature_id) / count(distinct p.ablation_id) as per_pass,
    avg((w.n_first > 0)::integer) as at_first,
    avg((w.n_template > 0)::integer) as at_template,
    avg((w.n_user > 0)::integer) as at_user,
    sum(w.n_first) / sum(w.n_tokens) as tokens_first,
    sum(w.n_template) / sum(w.n_tokens) as tokens_template,
    sum(w.n_user) / sum(w.n_tokens) as tokens_user
from passes as p
left join wakings as w on w.ablation_id = p.ablation_id
group by p.source, p.is_control
order by p.source, p.is_control
