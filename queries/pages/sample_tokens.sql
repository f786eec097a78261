-- The top samples of given features, token by token, with the activation on each: what a page shows.
--
-- A sample is a prompt with the token on which the feature fires most there; is_top marks it. Tokens up to `window` around it are
-- shown, BOS is neither shown nor counted. Ties go to the lower prompt_id, then the lower pos.
--
-- $features features: which features
-- $n integer = 5: samples a feature
-- $window integer = 16: tokens of context on either side
with firings as (
    select a.layer, a.sae_id, a.feature_id, a.prompt_id, a.pos, a.activation
    from $features(activations) as a
),

strongest as (
    select f.layer, f.sae_id, f.feature_id, f.prompt_id, f.pos, f.activation
    from firings as f
    join tokens as t on t.prompt_id = f.prompt_id and t.pos = f.pos
    where t.role <> 'bos'
    qualify row_number() over (partition by f.sae_id, f.feature_id, f.prompt_id order by f.activation desc, f.pos) = 1
),

top as (
    select
        layer, sae_id, feature_id, prompt_id, pos, activation,
        row_number() over (partition by sae_id, feature_id order by activation desc, prompt_id) as rank
    from strongest
    qualify rank <= $n
)

select
    top.layer, top.sae_id, top.feature_id, top.rank, top.activation as top_activation, p.label, p.category,
    top.prompt_id, t.pos, t.token, t.role, t.pos = top.pos as is_top, f.activation
from top
join prompts as p on p.prompt_id = top.prompt_id
join tokens as t on t.prompt_id = top.prompt_id and t.pos between top.pos - $window and top.pos + $window and t.role <> 'bos'
left join firings as f
    on f.sae_id = top.sae_id and f.feature_id = top.feature_id and f.prompt_id = t.prompt_id and f.pos = t.pos
order by top.layer, top.sae_id, top.feature_id, top.rank, t.pos
