-- One row per feature for the static pages' cards: what the list of features tells of it (the table static_listed), how it fires, and what
-- other tables tell of it as JSON (static_held has the sets that hold it, static_effects what ablating it does, static_edges what stands in
-- for it, wakes and lies near; static_dense what is too much to read in a browser).
--
-- density: its bin of those that the question `densities` counts, where it fires on any token but BOS.
with seen as $step(sae_tokens),

roles as (
    select sae_id, feature_id, to_json(list({'population': population, 'n_prompts': n_prompts} order by population)) as roles
    from populations
    group by sae_id, feature_id
),

sets as (
    select
        sae_id, feature_id,
        to_json(list({
            'condition': condition, 'n_prompts': n_prompts, 'of_prompts': of_prompts, 'n_flipped': n_flipped, 'smallest': smallest
        } order by n_prompts desc, condition)) as sets
    from static_held
    group by sae_id, feature_id
),

categories as (
    select
        sae_id, feature_id,
        to_json(list({
            'category': category, 'n_prompts': n_prompts, 'n_literal': n_literal, 'n_user': n_user, 'q_value': q_value
        } order by category)) as categories
    from taxonomy
    where q_value <= 0.05
    group by sae_id, feature_id
),

explained as (
    select
        sae_id, feature_id,
        to_json(list({'description': description, 'explainer': explainer, 'source': source} order by number)) as explanations
    from explanations
    group by sae_id, feature_id
)

select
    l.layer, l.sae_id, l.feature_id, f.n_prompts, f.n_target, f.n_control, f.n_tokens, f.n_bos, f.mean_activation, f.max_activation,
    f.decoder_norm, l.auroc, l.n_critical, l.effect, l.n_effect, l.recovered, l.q, l.category,
    if(
        f.n_tokens > 0 and t.n_tokens > 0,
        least(floor((greatest(log10(f.n_tokens / t.n_tokens), -6) + 6) * 24 / 6), 23)::integer, null
    ) as density,
    if(
        e.sae_id is not null,
        to_json({'n_prompts': e.n_prompts, 'n_flipped': e.n_flipped, 'mean_fall': e.mean_fall, 'prompts': e.prompts}), null
    ) as effects,
    g.backed, g.backs, g.wakes, g.woken, g.nearest,
    m.skewness, m.kurtosis, r.roles, s.sets, c.categories, x.explanations, d.firing
from static_listed as l
join features as f on f.sae_id = l.sae_id and f.feature_id = l.feature_id
left join seen as t on t.sae_id = l.sae_id
left join static_effects as e on e.sae_id = l.sae_id and e.feature_id = l.feature_id
left join static_edges as g on g.sae_id = l.sae_id and g.feature_id = l.feature_id
left join logit_moments as m on m.sae_id = l.sae_id and m.feature_id = l.feature_id
left join roles as r on r.sae_id = l.sae_id and r.feature_id = l.feature_id
left join sets as s on s.sae_id = l.sae_id and s.feature_id = l.feature_id
left join categories as c on c.sae_id = l.sae_id and c.feature_id = l.feature_id
left join explained as x on x.sae_id = l.sae_id and x.feature_id = l.feature_id
left join static_dense as d on d.sae_id = l.sae_id and d.feature_id = l.feature_id
where l.sae_id = $sae_id
order by l.feature_id
