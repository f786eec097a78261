-- The concepts of a population's features, by the recipe's patterns over their explanations (Tables 7, 8, 10 and 11, R20).
--
-- A feature belongs to every concept that one of its explanations matches; unexplained features are counted apart, and other is what
-- matches no pattern. share is of the population's features, examples are the ones found for most prompts, as layer:feature_id
-- (sae_id:feature_id where the layer has several SAEs).
--
-- $population candidates|critical|stage3|stage3_new|redundant = critical: whose features
-- $examples integer = 4: how many examples per concept
with members as (
    select p.sae_id, p.layer, p.feature_id, p.n_prompts, e.feature_id is not null as is_explained
    from populations as p
    left join (select distinct sae_id, feature_id from explanations) as e
        on e.sae_id = p.sae_id and e.feature_id = p.feature_id
    where p.population = $population
),

matched as (
    select distinct m.sae_id, m.layer, m.feature_id, m.n_prompts, c.rank, c.concept
    from members as m
    join explanations as e on e.sae_id = m.sae_id and e.feature_id = m.feature_id
    join concepts as c on regexp_matches(e.description, c.pattern, 'i')
),

grouped as (
    select rank, concept, sae_id, layer, feature_id, n_prompts
    from matched
    union all
    select 1000000 + (not is_explained)::integer, if(is_explained, 'other', 'unexplained'), m.sae_id, m.layer, m.feature_id, m.n_prompts
    from members as m
    anti join matched as x on x.sae_id = m.sae_id and x.feature_id = m.feature_id
),

shared as (
    select layer
    from saes
    group by layer
    having count(*) > 1
),

counted as (
    select
        rank, concept,
        count(*) as n_features,
        list(if(layer in (select layer from shared), sae_id, layer::varchar) || ':' || feature_id order by n_prompts desc, layer, feature_id, sae_id)[:$examples] as examples
    from grouped
    group by rank, concept
)

select concept, n_features, n_features / (select count(*) from members) as share, array_to_string(examples, ', ') as examples
from counted
order by rank
