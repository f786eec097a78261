-- The critical features of each prompt, from what Stage 2 found, and whether they fire on it at all (R8).
--
-- method minimal: the 1-minimal sets, one per start of the search. method algorithm1: what Algorithm 1 found under all seeds, at
-- the smallest tau at which ablating it flips the prompt by the judge; prompts without such a tau are absent. n_tokens counts
-- the tokens of the prompt on which the feature fires on the clean pass, BOS included; 0, without max_activation: it is inert.
--
-- $judge judge = oracle: who decides which tau flips
-- $start integer? = null: only this start of the search
with targets as (
    select a.ablation_id, a.method, a.draw, a.tau, a.prompt_id, a.set_id
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    where
        ((a.method = 'minimal' and a.part is null) or (a.method = 'algorithm1' and a.part = 'common'))
        and a.control is null and p.label_role = 'target' and a.set_id is not null
),

sets as (
    select prompt_id, 'minimal' as method, draw as start, null::float as tau, set_id
    from targets
    where method = 'minimal'
    union all
    select h.prompt_id, 'algorithm1' as method, 0 as start, h.tau, h.set_id
    from targets as h
    join verdicts as v on v.ablation_id = h.ablation_id
    where h.method = 'algorithm1' and v.judge = $judge and v.flipped
    qualify row_number() over (partition by h.prompt_id order by h.tau) = 1
),

members as (
    select s.prompt_id, s.method, s.start, s.tau, f.sae_id, f.layer, f.feature_id
    from sets as s
    join feature_sets as f on f.set_id = s.set_id
    where $start is null or s.start = $start
),

firings as (
    select a.prompt_id, a.sae_id, a.feature_id, count(*) as n_tokens, max(a.activation) as max_activation
    from activations as a
    semi join members as m on m.prompt_id = a.prompt_id and m.sae_id = a.sae_id and m.feature_id = a.feature_id
    group by a.prompt_id, a.sae_id, a.feature_id
)

select
    m.prompt_id, m.method, m.start, m.tau, m.sae_id, m.layer, m.feature_id,
    coalesce(f.n_tokens, 0) as n_tokens, f.max_activation
from members as m
left join firings as f on f.prompt_id = m.prompt_id and f.sae_id = m.sae_id and f.feature_id = m.feature_id
order by m.method, m.start, m.prompt_id, m.layer, m.feature_id, m.sae_id
