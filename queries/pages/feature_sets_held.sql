-- The role of every feature in the sets of the search, as feature_in_sets tells it of one: for pages that are written at once.
--
-- $judge judge = oracle: whose verdicts count
with searched as (
    select a.ablation_id, a.condition, a.prompt_id, a.set_id
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id and p.label_role = 'target'
    where
        a.control is null and a.set_id is not null and a.method not like 'clamp%' and a.method not in ('waking', 'woken')
        and coalesce(a.part, '') not in ('complement', 'common_complement')
),

totals as (
    select condition, count(distinct prompt_id) as of_prompts
    from searched
    group by condition
),

asked as (
    select distinct set_id
    from searched
),

members as (
    select s.set_id, s.sae_id, s.layer, s.feature_id, s.value, count(*) over (partition by s.set_id) as n_features
    from feature_sets as s
    semi join asked as a on a.set_id = s.set_id
),

held as (
    select distinct set_id, sae_id, layer, feature_id, n_features
    from members
    where value = 0
),

refused as (
    select distinct a.prompt_id
    from ablations as a
    join verdicts as v on v.ablation_id = a.ablation_id and v.judge = $judge
    where a.method = 'none' and v.refused
)

select
    h.layer, h.sae_id, h.feature_id, s.condition,
    count(distinct s.prompt_id) as n_prompts,
    any_value(t.of_prompts) as of_prompts,
    count(distinct s.prompt_id) filter (where v.flipped and r.prompt_id is not null) as n_flipped,
    min(h.n_features) as smallest
from searched as s
join held as h on h.set_id = s.set_id
join totals as t on t.condition = s.condition
left join verdicts as v on v.ablation_id = s.ablation_id and v.judge = $judge
left join refused as r on r.prompt_id = s.prompt_id
group by h.layer, h.sae_id, h.feature_id, s.condition
order by h.layer, h.feature_id, h.sae_id, n_prompts desc, s.condition
