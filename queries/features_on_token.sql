-- Which features fire on a given token: how often, how strongly, and how much of what they do is that.
--
-- n_fired counts the places of the token on which a feature fires, of n_places that there are; share = n_fired / n_places. of_feature
-- is the part of the feature's firing tokens that these are: near 1, it is a feature of this token. Spaces around a token count.
-- BOS tokens are left out, unless they are asked for by name. Rows come in descending order of share, ties by of_feature, layer and
-- feature_id.
--
-- $token text: the token as the table tokens spells it
-- $match exact|word|contains = word: equal; equal without the spaces around and whatever the case; or holding it, whatever the case
-- $layer layer? = null: only this layer
-- $min_fired integer = 1: only features that fire on at least this many of its places
-- $limit integer? = 100: at most this many rows; null for all
with places as (
    select prompt_id, pos
    from tokens
    where
        case $match
            when 'exact' then token = $token
            when 'word' then lower(trim(token)) = lower(trim($token))
            else contains(lower(token), lower($token))
        end
        and (role <> 'bos' or token = $token)
),

counted as (
    select count(*) as n_places
    from places
),

firings as (
    select
        a.layer, a.sae_id, a.feature_id,
        count(*) as n_fired,
        count(distinct a.prompt_id) as n_prompts,
        avg(a.activation) as mean_activation,
        max(a.activation) as max_activation
    from activations as a
    semi join places as p on p.prompt_id = a.prompt_id and p.pos = a.pos
    where $layer is null or a.layer = $layer
    group by a.layer, a.sae_id, a.feature_id
    having count(*) >= $min_fired
),

everywhere as (
    select sae_id, feature_id, n_tokens + n_bos as n_tokens
    from features
)

select
    f.layer, f.sae_id, f.feature_id, f.n_fired, c.n_places, f.n_fired / c.n_places as share,
    f.n_fired / e.n_tokens as of_feature, f.n_prompts, f.mean_activation, f.max_activation
from firings as f
cross join counted as c
left join everywhere as e on e.sae_id = f.sae_id and e.feature_id = f.feature_id
order by share desc, of_feature desc, f.layer, f.sae_id, f.feature_id
limit $limit
