-- Sizes of the first minimal set (on control prompts of the one that they take), of what Algorithm 1 finds under all seeds at the
-- smallest tau that flips, and (common) of what it finds under all seeds at every tau, whether it flips or not: the fair comparison,
-- in which success chose no set.
with found as (
    select 'minimal' as method, null as tau, prompt_id, set_id
    from ablations
    where method = 'minimal' and part is null and control is null and draw = 0
    union all
    select 'algorithm1' as method, null as tau, a.prompt_id, a.set_id
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
    join prompts as p on p.prompt_id = a.prompt_id
    where
        a.method = 'algorithm1' and a.part = 'common' and a.control is null
        and a.set_id is not null and v.flipped and p.label_role = 'target'
    qualify row_number() over (partition by a.prompt_id order by a.tau) = 1
    union all
    select 'common' as method, a.tau, a.prompt_id, a.set_id
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    where
        a.method = 'algorithm1' and a.part = 'common' and a.control is null
        and a.set_id is not null and p.label_role = 'target'
)

select f.method, f.tau, f.prompt_id, s.sae_id, count(*) as n
from found as f
join feature_sets as s on s.set_id = f.set_id
group by all
order by all
