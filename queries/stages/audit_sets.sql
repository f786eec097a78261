-- The sets that flip prompts, and as many random active features: what an audit holds ablated. The prompts are those of the
-- question atlas_prompts, which the unmodified model refuses.
--
-- source minimal: the first minimal set; top_k: the candidates of the first flip; common: what Algorithm 1 finds under all seeds, at
-- the smallest tau that flips. control random: the first draw of random features that the study has for such a set.
--
-- $judge judge: whose verdict counts
-- $direction own|chosen|attribution|first = own: whose candidates; first: of the ranking that flips a prompt at the smallest K
-- $prompts prompts: the prompt_ids
with flips as (
    select a.prompt_id, a.method, a.part, a.control, a.k, a.tau, a.draw, a.set_id
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
    where list_contains($prompts, a.prompt_id) and a.control is null and a.set_id is not null and v.flipped
),

found as (
    select 'minimal' as source, prompt_id, set_id, null as k, null as tau
    from flips
    where method = 'minimal' and part is null
    qualify row_number() over (partition by prompt_id order by draw) = 1
    union all
    select 'top_k' as source, prompt_id, set_id, k, null as tau
    from flips
    where method = 'top_k' and ($direction = 'first' or part = $direction)
    qualify row_number() over (partition by prompt_id order by k, case part when 'own' then 1 when 'chosen' then 2 else 3 end) = 1
    union all
    select 'common' as source, prompt_id, set_id, null as k, tau
    from flips
    where method = 'algorithm1' and part = 'common'
    qualify row_number() over (partition by prompt_id order by tau) = 1
),

drawn as (
    select f.source, f.prompt_id, a.set_id
    from found as f
    join ablations as a
        on
            a.prompt_id = f.prompt_id and a.control = 'random' and a.draw = 0 and a.set_id is not null
            and a.method = if(f.source = 'common', 'algorithm1', f.source)
            and a.part is not distinct from if(f.source = 'common', 'common', null)
            and a.k is not distinct from f.k and a.tau is not distinct from f.tau
),

audited as (
    select source, null as control, prompt_id, set_id
    from found
    union all
    select source, 'random' as control, prompt_id, set_id
    from drawn
)

select a.prompt_id, a.source, a.control, a.set_id, s.sae_id, s.feature_id
from audited as a
join feature_sets as s on s.set_id = a.set_id
order by a.prompt_id, a.source, a.control nulls first, s.sae_id, s.feature_id
