-- What stands in for every feature, what it wakes, and the decoder rows next to its own, as JSON for the static pages' cards: as the
-- questions feature_backups, neighbours and nearest_rows tell it of one.
with tested as (
    select
        source_sae_id as sae_id, source_feature_id as feature_id, 'backed' as way,
        layer as other_layer, sae_id as other_sae_id, feature_id as other_feature_id, prompt_id, flips
    from backups
    where source_feature_id is not null and (flips or is_needed)
    union all
    select
        sae_id, feature_id, 'backs' as way,
        source_layer as other_layer, source_sae_id as other_sae_id, source_feature_id as other_feature_id, prompt_id, flips
    from backups
    where source_feature_id is not null and (flips or is_needed)
),

stands_in as (
    select
        sae_id, feature_id, way, other_layer, other_sae_id, other_feature_id,
        count(distinct prompt_id) as n_prompts, count(distinct prompt_id) filter (where flips) as n_alone
    from tested
    group by sae_id, feature_id, way, other_layer, other_sae_id, other_feature_id
),

wakes as (
    select
        source_sae_id as sae_id, source_feature_id as feature_id, 'wakes' as way,
        layer as other_layer, sae_id as other_sae_id, feature_id as other_feature_id, n_prompts, n_woken, expected, q_value
    from waking_edges
    where source_feature_id is not null and q_value <= 0.05
    union all
    select
        sae_id, feature_id, 'woken' as way,
        source_layer as other_layer, source_sae_id as other_sae_id, source_feature_id as other_feature_id,
        n_prompts, n_woken, expected, q_value
    from waking_edges
    where source_feature_id is not null and q_value <= 0.05
),

near as (
    select sae_id, feature_id, other_layer, other_sae_id, other_feature_id, cosine
    from decoder_cosines
    union all
    select other_sae_id, other_feature_id, layer as other_layer, sae_id as other_sae_id, feature_id as other_feature_id, cosine
    from decoder_cosines
),

told as (
    select
        sae_id, feature_id, way,
        to_json(list({
            'layer': other_layer, 'sae_id': other_sae_id, 'feature_id': other_feature_id, 'n_prompts': n_prompts, 'n_alone': n_alone
        } order by n_prompts desc, other_layer, other_feature_id, other_sae_id)[:$n]) as edges
    from stands_in
    group by sae_id, feature_id, way
    union all
    select
        sae_id, feature_id, way,
        to_json(list({
            'layer': other_layer, 'sae_id': other_sae_id, 'feature_id': other_feature_id, 'n_prompts': n_prompts,
            'n_woken': n_woken, 'expected': expected, 'q_value': q_value
        } order by q_value, n_woken desc, other_layer, other_feature_id, other_sae_id)[:$n]) as edges
    from wakes
    group by sae_id, feature_id, way
    union all
    select
        sae_id, feature_id, 'nearest' as way,
        to_json(list({
            'layer': other_layer, 'sae_id': other_sae_id, 'feature_id': other_feature_id, 'cosine': cosine
        } order by cosine desc, other_layer, other_feature_id, other_sae_id)[:$n]) as edges
    from near
    group by sae_id, feature_id
)

select
    sae_id, feature_id, any_value(edges) filter (where way = 'backed') as backed, any_value(edges) filter (where way = 'backs') as backs,
    any_value(edges) filter (where way = 'wakes') as wakes, any_value(edges) filter (where way = 'woken') as woken,
    any_value(edges) filter (where way = 'nearest') as nearest
from told
group by sae_id, feature_id
