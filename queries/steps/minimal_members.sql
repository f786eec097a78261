-- Every feature of a minimal set of each target prompt, by the prompt's text: what two trainings of SAEs are compared by.
with critical as (
    select distinct p.prompt_hash, s.sae_id, s.feature_id
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    join feature_sets as s on s.set_id = a.set_id
    where a.method = 'minimal' and a.part is null and a.control is null and p.label_role = 'target'
)

select prompt_hash, sae_id, feature_id
from critical
order by all
