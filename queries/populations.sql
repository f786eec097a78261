-- Which features each stage of the search found: the groups that concepts, categories and annotation studies are about.
--
-- candidates: Stage 1, the top K features per SAE at the K at which a target prompt first flips. critical: the sets of Stage 2.
-- stage3: the sets of Stage 3 that flip a target prompt; stage3_new: of these neither candidates nor critical. redundant: critical,
-- silent on their prompt, and woken while the active features of the set are ablated. A prompt flips only if the judge reads it as
-- refused without an edit. n_prompts counts the target prompts that a feature was found for.
--
-- $judge judge = oracle: who decides what flips
-- $direction own|chosen|attribution|first = chosen: whose candidates; first: of the ranking that flips a prompt at the smallest K
-- $method method = minimal: whose critical sets
with refused as (
    select distinct a.prompt_id
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    where a.method = 'none' and v.judge = $judge and v.refused
),

flips as (
    select a.condition, a.method, a.part, a.k, a.prompt_id, a.set_id
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    semi join refused as r on r.prompt_id = a.prompt_id
    where
        v.judge = $judge and v.flipped and p.label_role = 'target' and a.control is null
        and a.set_id is not null and a.k is not null
),

first_flips as (
    select prompt_id, set_id
    from flips
    where method = 'top_k' and ($direction = 'first' or part = $direction)
    qualify row_number() over (partition by prompt_id order by k, case part when 'own' then 1 when 'chosen' then 2 else 3 end, set_id) = 1
),

found as (
    select 'candidates' as population, f.prompt_id, s.sae_id, s.layer, s.feature_id
    from first_flips as f
    join feature_sets as s on s.set_id = f.set_id
    union
    select 'critical' as population, prompt_id, sae_id, layer, feature_id
    from critical_features
    where method = $method
    union
    select 'stage3' as population, f.prompt_id, s.sae_id, s.layer, s.feature_id
    from flips as f
    join feature_sets as s on s.set_id = f.set_id
    where f.condition = 'stage3'
    union
    select 'redundant' as population, c.prompt_id, c.sae_id, c.layer, c.feature_id
    from critical_features as c
    join waking_passes as p
        on p.prompt_id = c.prompt_id and p.method = c.method and p.start = c.start and p.control is null
    join wakings as w on w.ablation_id = p.ablation_id and w.sae_id = c.sae_id and w.feature_id = c.feature_id
    where c.method = $method and c.n_tokens = 0
),

counted as (
    select population, sae_id, layer, feature_id, count(distinct prompt_id) as n_prompts
    from found
    group by population, sae_id, layer, feature_id
),

all_groups as (
    select population, sae_id, layer, feature_id, n_prompts
    from counted
    union all
    select 'stage3_new' as population, s.sae_id, s.layer, s.feature_id, s.n_prompts
    from counted as s
    anti join counted as old
        on old.population in ('candidates', 'critical') and old.sae_id = s.sae_id and old.feature_id = s.feature_id
    where s.population = 'stage3'
)

select population, sae_id, layer, feature_id, n_prompts
from all_groups
order by population, layer, feature_id, sae_id
