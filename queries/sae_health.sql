-- Is each SAE in good health on these prompts? Dead and dense features, and how many fire per token beside what was declared.
--
-- dead features fire on no token of the study, dense ones on more than dense_rate of them; BOS is left out of all. l0 is the mean
-- number of features that fire on a token; l0_ratio = measured / declared: far from 1, the SAE does not fit the model, the layer or
-- its input norm. active_share is the part of the firing features that half of all activations come from: small, a few dominate.
--
-- $dense_rate number = 0.1: the share of tokens above which a feature is dense
with seen as $step(sae_tokens),

rates as (
    select f.sae_id, f.feature_id, f.n_tokens, f.n_tokens / nullif(s.n_tokens, 0) as rate, s.n_tokens as n_study_tokens
    from features as f
    join seen as s on s.sae_id = f.sae_id
),

shares as (
    select
        sae_id, n_tokens,
        sum(n_tokens) over (partition by sae_id order by n_tokens desc, feature_id rows unbounded preceding) - n_tokens as before,
        sum(n_tokens) over (partition by sae_id) as n_activations
    from rates
),

dominant as (
    select sae_id, count(*) filter (where n_tokens > 0 and before < n_activations / 2) as n_half
    from shares
    group by sae_id
),

counted as (
    select
        sae_id,
        count(*) as n_features,
        count(*) filter (where n_tokens = 0) as n_dead,
        count(*) filter (where rate > $dense_rate) as n_dense,
        max(rate) as max_rate,
        sum(n_tokens)::bigint as n_activations,
        sum(n_tokens) / nullif(any_value(n_study_tokens), 0) as l0
    from rates
    group by sae_id
)

select
    s.layer, s.sae_id, s.name, s.width, c.n_dead, c.n_dead / c.n_features as dead, c.n_dense, c.n_dense / c.n_features as dense,
    c.max_rate, c.l0, s.declared_l0, c.l0 / s.declared_l0 as l0_ratio,
    d.n_half / nullif(c.n_features - c.n_dead, 0) as active_share
from saes as s
join counted as c on c.sae_id = s.sae_id
join dominant as d on d.sae_id = s.sae_id
order by s.layer, s.sae_id
