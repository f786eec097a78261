-- Where given features fire most: the top samples of each, with the tokens around.
--
-- A sample is a prompt with the token on which the feature fires most there (or every token, see per_prompt). context shows the
-- tokens around it, separated by spaces, the token itself in [[ ]]. Ties go to the lower prompt_id, then the lower pos.
--
-- $features features: which features
-- $n integer = 5: samples per feature
-- $window integer = 8: tokens of context on either side
-- $bos boolean = false: whether BOS tokens count
-- $per_prompt boolean = true: one sample per prompt; false for one per token
with bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos' and not $bos
),

firings as (
    select a.layer, a.sae_id, a.feature_id, a.prompt_id, a.pos, a.activation
    from $features(activations) as a
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
),

samples as (
    select layer, sae_id, feature_id, prompt_id, pos, activation
    from firings
    qualify
        not $per_prompt
        or row_number() over (partition by sae_id, feature_id, prompt_id order by activation desc, pos) = 1
),

top as (
    select
        layer, sae_id, feature_id, prompt_id, pos, activation,
        row_number() over (partition by sae_id, feature_id order by activation desc, prompt_id, pos) as rank
    from samples
    qualify rank <= $n
),

contexts as (
    select
        top.sae_id,
        top.feature_id,
        top.rank,
        string_agg(if(t.pos = top.pos, '[[' || t.token || ']]', t.token), ' ' order by t.pos) as context
    from top
    join tokens as t on t.prompt_id = top.prompt_id and t.pos between top.pos - $window and top.pos + $window
    group by top.sae_id, top.feature_id, top.rank
)

select
    top.layer, top.sae_id, top.feature_id, top.rank, top.activation, t.token, t.role, contexts.context,
    top.prompt_id, top.pos, p.label, p.category, p.text
from top
join contexts on contexts.sae_id = top.sae_id and contexts.feature_id = top.feature_id and contexts.rank = top.rank
join tokens as t on t.prompt_id = top.prompt_id and t.pos = top.pos
join prompts as p on p.prompt_id = top.prompt_id
order by top.layer, top.sae_id, top.feature_id, top.rank
