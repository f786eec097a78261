-- Features by what tells something of them, for the explorer's list: every condition that is given must hold.
--
-- auroc: how well it tells the labels apart; n_critical: prompts of whose minimal sets it is one; effect: what P(target) falls by where
-- it alone is ablated, over n_effect prompts, from stored ablations, and from the atlas where there is none; recovered: of the target
-- prompts on which a set that holds it was audited and took the behaviour away, the share on which a change brought it back; q: the
-- smallest of its categories, category the one. Where nothing is known, nothing is said, and it comes last.
--
-- $layer layer? = null: only this layer
-- $feature_id feature? = null: only this number
-- $sae_id sae? = null: only of this SAE
-- $words text? = null: words of an explanation, separated by spaces
-- $category category? = null: fires on it more than expected by chance, at a false discovery rate of 5%
-- $population candidates|critical|stage3|stage3_new|redundant? = null: only its features
-- $min_auroc number? = null: tells the labels apart at least so well, on either side of 0.5
-- $min_effect number? = null: P(target) falls by at least so much
-- $min_critical integer? = null: critical for at least this many prompts
-- $order critical|auroc|effect|recovered|q|prompts|largest|feature = critical: what comes first
-- $limit integer = 50: at most this many
with explained as (
    select sae_id, feature_id, string_agg(description, ' | ' order by number) as explanation
    from explanations
    group by sae_id, feature_id
),

critical as (
    select sae_id, feature_id, count(distinct prompt_id) as n_critical
    from critical_features
    where method = 'minimal'
    group by sae_id, feature_id
),

-- Two steps: counting comes before anything is read of the sets that are larger.
single_sets as (
    select set_id
    from feature_sets
    group by set_id
    having count(*) = 1
),

alone as (
    select s.set_id, s.sae_id, s.feature_id
    from feature_sets as s
    semi join single_sets as one on one.set_id = s.set_id
    where s.value = 0 and s.positions is null
),

clean as (
    select prompt_id, avg(p_refusal_token) as p_clean
    from ablations
    where method = 'none'
    group by prompt_id
),

stored as (
    select s.sae_id, s.feature_id, a.prompt_id, avg(c.p_clean - a.p_refusal_token) as fall
    from ablations as a
    join alone as s on s.set_id = a.set_id
    join clean as c on c.prompt_id = a.prompt_id
    where a.method not like 'clamp%'
    group by s.sae_id, s.feature_id, a.prompt_id
),

atlas as (
    select e.sae_id, e.feature_id, e.prompt_id, e.p_clean - e.p_target as fall
    from single_effects as e
    anti join stored as s on s.sae_id = e.sae_id and s.feature_id = e.feature_id and s.prompt_id = e.prompt_id
),

measured as (
    select sae_id, feature_id, prompt_id, fall
    from stored
    union all
    select sae_id, feature_id, prompt_id, fall
    from atlas
),

effects as (
    select sae_id, feature_id, avg(fall) as effect, count(distinct prompt_id) as n_effect
    from measured
    group by sae_id, feature_id
),

audited as (
    select r.set_id, r.prompt_id, bool_or(r.shown) as recovered
    from recoveries as r
    join prompts as p on p.prompt_id = r.prompt_id and p.label_role = 'target'
    where r.control is null and r.set_id is not null and r.kind <> 'random' and not r.shown_before
    group by r.set_id, r.prompt_id
),

recovered as (
    select s.sae_id, s.feature_id, avg(a.recovered::integer) as recovered
    from audited as a
    join feature_sets as s on s.set_id = a.set_id
    group by s.sae_id, s.feature_id
),

specific as (
    select sae_id, feature_id, min(q_value) as q, first(category order by q_value, category) as category
    from taxonomy
    group by sae_id, feature_id
)

select
    f.layer, f.sae_id, f.feature_id, s.auroc, c.n_critical, e.effect, e.n_effect, r.recovered, t.q, t.category,
    f.n_prompts, f.n_target, f.n_control, f.max_activation, x.explanation
from features as f
left join explained as x on x.sae_id = f.sae_id and x.feature_id = f.feature_id
left join critical as c on c.sae_id = f.sae_id and c.feature_id = f.feature_id
left join effects as e on e.sae_id = f.sae_id and e.feature_id = f.feature_id
left join recovered as r on r.sae_id = f.sae_id and r.feature_id = f.feature_id
left join specific as t on t.sae_id = f.sae_id and t.feature_id = f.feature_id
left join separations as s on s.sae_id = f.sae_id and s.feature_id = f.feature_id
where
    ($layer is null or f.layer = $layer)
    and ($feature_id is null or f.feature_id = $feature_id)
    and ($sae_id is null or f.sae_id = $sae_id)
    and (
        $words is null
        or len(list_filter(
            string_split(lower($words), ' '),
            lambda word: not contains(lower(coalesce(x.explanation, '')), word)
        )) = 0
    )
    and (
        $category is null
        or (f.sae_id, f.feature_id) in (select (sae_id, feature_id) from taxonomy where category = $category and q_value <= 0.05)
    )
    and (
        $population is null
        or (f.sae_id, f.feature_id) in (select (sae_id, feature_id) from populations where population = $population)
    )
    and ($min_auroc is null or greatest(s.auroc, 1 - s.auroc) >= $min_auroc)
    and ($min_effect is null or e.effect >= $min_effect)
    and ($min_critical is null or c.n_critical >= $min_critical)
order by
    case $order
        when 'critical' then c.n_critical
        when 'auroc' then abs(s.auroc - 0.5)
        when 'effect' then e.effect
        when 'recovered' then r.recovered
        when 'q' then -t.q
        when 'prompts' then f.n_prompts
        when 'largest' then f.max_activation
    end desc nulls last,
    if($order = 'feature', null, abs(s.auroc - 0.5)) desc nulls last,
    f.layer, f.feature_id, f.sae_id
limit $limit
