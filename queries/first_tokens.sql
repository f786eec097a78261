-- What the unmodified model's answers begin with, by label, and how probable a target token was there.
--
-- n_refused of the n_prompts with this first token are read as refused by the judge. p_refusal_token is the mean probability of a
-- target token (the recipe's target_tokens) over the prompts, p_refused over those refused. A first token that many refusals have,
-- with p_refused near 0, is not a target token: what goes by that probability (Algorithm 1, the choice of a direction) is blind there.
--
-- $judge judge = oracle: whose verdicts count; oracle is the recipe's
select
    p.label,
    a.first_token,
    count(*) as n_prompts,
    count(*) filter (where v.refused) as n_refused,
    avg(a.p_refusal_token) as p_refusal_token,
    avg(a.p_refusal_token) filter (where v.refused) as p_refused
from ablations as a
join verdicts as v on v.ablation_id = a.ablation_id
join prompts as p on p.prompt_id = a.prompt_id
where a.condition = 'none' and v.judge = $judge(p)
group by p.label, a.first_token
order by p.label, n_prompts desc, a.first_token
