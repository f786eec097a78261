-- A target prompt to begin with on the live page: one that a minimal set of two features flips, or of as near to two as there is.
with sizes as (
    select prompt_id, method, start, count(*) as n_features
    from critical_features
    where method = 'minimal'
    group by prompt_id, method, start
),

smallest as (
    select prompt_id, min(n_features) as n_features
    from sizes
    group by prompt_id
)

select p.prompt_id, p.text
from prompts as p
left join smallest as s on s.prompt_id = p.prompt_id
where p.label_role = 'target'
order by abs(s.n_features - 2) nulls last, p.prompt_id
limit 1
