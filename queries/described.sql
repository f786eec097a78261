-- What is said of the features of a population: their explanations, or the tokens on which they fire where there is none (R20).
--
-- One row per feature. description joins its explanations by " | ". Where there is no public one, or tokens are asked for, it is the
-- tokens on which the feature fires most, one per prompt, strongest first, BOS left out; about says which.
--
-- $population candidates|critical|stage3|stage3_new|redundant = critical: whose features
-- $about explanations|tokens|either = either: what counts as a description
-- $n integer = 5: tokens per feature
with members as (
    select sae_id, layer, feature_id, n_prompts
    from populations
    where population = $population
),

explained as (
    select e.sae_id, e.feature_id, string_agg(e.description, ' | ' order by e.number) as description
    from explanations as e
    semi join members as m on m.sae_id = e.sae_id and m.feature_id = e.feature_id
    where $about <> 'tokens'
    group by e.sae_id, e.feature_id
),

strongest as (
    select a.sae_id, a.feature_id, a.prompt_id, a.activation, t.token
    from activations as a
    semi join members as m on m.sae_id = a.sae_id and m.feature_id = a.feature_id
    anti join explained as e on e.sae_id = a.sae_id and e.feature_id = a.feature_id
    join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
    where $about <> 'explanations' and t.role <> 'bos'
    qualify row_number() over (partition by a.sae_id, a.feature_id, a.prompt_id order by a.activation desc, a.pos) = 1
),

top as (
    select
        sae_id, feature_id, token,
        row_number() over (partition by sae_id, feature_id order by activation desc, prompt_id) as rank
    from strongest
    qualify rank <= $n
),

tokens_of as (
    select sae_id, feature_id, string_agg(trim(token), ' ' order by rank) as description
    from top
    group by sae_id, feature_id
)

select
    m.layer, m.sae_id, m.feature_id, m.n_prompts,
    case when e.description is not null then 'explanations' when t.description is not null then 'tokens' else 'nothing' end as about,
    coalesce(e.description, t.description) as description
from members as m
left join explained as e on e.sae_id = m.sae_id and e.feature_id = m.feature_id
left join tokens_of as t on t.sae_id = m.sae_id and t.feature_id = m.feature_id
order by m.layer, m.feature_id, m.sae_id
