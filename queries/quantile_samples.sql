-- Samples of given features from weak to strong: some tokens of each quantile of their activations, with the tokens around.
--
-- The tokens on which a feature fires, BOS left out, are ordered by activation and cut into parts of equal size, 1 the weakest; a few
-- of each part are drawn, the same ones whenever it is asked with that seed. Top samples alone make a feature look clearer than it is.
--
-- $features features: which features
-- $quantiles integer = 5: how many parts
-- $n integer = 3: samples of each part
-- $window integer = 8: tokens of context on either side
-- $seed integer = 0: which samples are drawn
with firings as (
    select a.layer, a.sae_id, a.feature_id, a.prompt_id, a.pos, a.activation
    from $features(activations) as a
    anti join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos and t.role = 'bos'
),

parts as (
    select
        layer, sae_id, feature_id, prompt_id, pos, activation,
        1 + floor(
            (row_number() over (partition by sae_id, feature_id order by activation, prompt_id, pos) - 1)
            * $quantiles / count(*) over (partition by sae_id, feature_id)
        )::integer as quantile
    from firings
),

-- Drawn by text and place, so that the same content in another lake gives the same samples.
drawn as (
    select
        f.layer, f.sae_id, f.feature_id, f.prompt_id, f.pos, f.activation, f.quantile,
        row_number() over (
            partition by f.sae_id, f.feature_id, f.quantile
            order by md5(concat_ws('/', $seed, p.prompt_hash, f.pos)), f.prompt_id
        ) as number
    from parts as f
    join prompts as p on p.prompt_id = f.prompt_id
    qualify number <= $n
),

contexts as (
    select
        d.sae_id, d.feature_id, d.prompt_id, d.pos,
        string_agg(if(t.pos = d.pos, '[[' || t.token || ']]', t.token), ' ' order by t.pos) as context
    from drawn as d
    join tokens as t on t.prompt_id = d.prompt_id and t.pos between d.pos - $window and d.pos + $window
    group by d.sae_id, d.feature_id, d.prompt_id, d.pos
)

select
    d.layer, d.sae_id, d.feature_id, d.quantile, d.activation, t.token, t.role, c.context, d.prompt_id, d.pos, p.label, p.category
from drawn as d
join contexts as c
    on c.sae_id = d.sae_id and c.feature_id = d.feature_id and c.prompt_id = d.prompt_id and c.pos = d.pos
join tokens as t on t.prompt_id = d.prompt_id and t.pos = d.pos
join prompts as p on p.prompt_id = d.prompt_id
order by d.layer, d.sae_id, d.feature_id, d.quantile, d.activation, d.prompt_id, d.pos
