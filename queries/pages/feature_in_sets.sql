-- The role of one feature in the sets of the search: which methods hold it, on how many prompts, and how often such a set flips.
--
-- n_prompts: prompts for which the method has a set that holds the feature; of_prompts: for which it has any. n_flipped: of those with
-- the feature, which are refused without an edit and a set that holds it flips. smallest: features of the smallest such set. Controls,
-- clamps, passes that look for what wakes and what Algorithm 1 left over are left out.
--
-- $layer layer: the feature's layer
-- $feature_id feature: the feature
-- $sae_id sae? = null: the feature's SAE, where its layer has several; null for whichever the layer has
-- $judge judge = oracle: whose verdicts count
with mine as (
    select distinct set_id
    from feature_sets
    where layer = $layer and feature_id = $feature_id and ($sae_id is null or sae_id = $sae_id) and value = 0
),

sizes as (
    select s.set_id, count(*) as n_features
    from feature_sets as s
    semi join mine as m on m.set_id = s.set_id
    group by s.set_id
),

searched as (
    select a.ablation_id, a.condition, a.method, a.prompt_id, a.set_id, z.n_features
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id and p.label_role = 'target'
    left join sizes as z on z.set_id = a.set_id
    where
        a.control is null and a.set_id is not null and a.method not like 'clamp%' and a.method not in ('waking', 'woken')
        and coalesce(a.part, '') not in ('complement', 'common_complement')
),

refused as (
    select distinct a.prompt_id
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
    where a.method = 'none' and v.refused
)

select
    s.condition,
    count(distinct s.prompt_id) filter (where s.n_features is not null) as n_prompts,
    count(distinct s.prompt_id) as of_prompts,
    count(distinct s.prompt_id) filter (where s.n_features is not null and v.flipped and r.prompt_id is not null) as n_flipped,
    min(s.n_features) as smallest
from searched as s
left join verdicts as v on v.ablation_id = s.ablation_id and v.judge = $judge
left join refused as r on r.prompt_id = s.prompt_id
group by s.condition
having count(s.n_features) > 0
order by n_prompts desc, s.condition
