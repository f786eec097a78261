-- Samples of a feature from weak to strong, token by token, with the activation on each: what a card shows below the top samples.
--
-- Its tokens, BOS left out, are ordered by activation and cut into parts of equal size, 1 the weakest; of each part `n` are drawn,
-- the same ones whenever it is asked. Tokens up to `window` around it are shown.
--
-- $features features: which features
-- $quantiles integer = 5: how many parts
-- $n integer = 1: samples of each part
-- $window integer = 16: tokens of context on either side
with firings as (
    select a.layer, a.sae_id, a.feature_id, a.prompt_id, a.pos, a.activation
    from $features(activations) as a
),

places as (
    select f.sae_id, f.feature_id, f.prompt_id, f.pos, f.activation
    from firings as f
    join tokens as t on t.prompt_id = f.prompt_id and t.pos = f.pos
    where t.role <> 'bos'
),

parts as (
    select
        sae_id, feature_id, prompt_id, pos, activation,
        1 + floor(
            (row_number() over (partition by sae_id, feature_id order by activation, prompt_id, pos) - 1)
            * $quantiles / count(*) over (partition by sae_id, feature_id)
        )::integer as quantile
    from places
),

drawn as (
    select d.sae_id, d.feature_id, d.prompt_id, d.pos, d.activation, d.quantile
    from parts as d
    join prompts as p on p.prompt_id = d.prompt_id
    qualify row_number() over (
        partition by d.sae_id, d.feature_id, d.quantile
        order by md5(concat_ws('/', p.prompt_hash, d.pos)), d.prompt_id
    ) <= $n
)

select
    d.sae_id, d.feature_id, d.quantile, d.activation as top_activation, p.label, p.category,
    d.prompt_id, t.pos, t.token, t.role, t.pos = d.pos as is_top, f.activation
from drawn as d
join prompts as p on p.prompt_id = d.prompt_id
join tokens as t on t.prompt_id = d.prompt_id and t.pos between d.pos - $window and d.pos + $window and t.role <> 'bos'
left join firings as f
    on f.sae_id = d.sae_id and f.feature_id = d.feature_id and f.prompt_id = t.prompt_id and f.pos = t.pos
order by d.sae_id, d.feature_id, d.quantile, d.prompt_id, d.pos, t.pos
