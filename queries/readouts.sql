-- Which critical features are read-outs: what they do to the answer is that they write it, and no block above them takes part.
--
-- One row per feature, over the n_prompts for which it is critical (n_flip that it flips when it is ablated by itself). effect is by how
-- much that lowers the log-odds of the target tokens (nats, mean), direct what of this is left when only what the feature adds at
-- the last token is taken out after the last block, and share the part of the whole that direct makes up; null where it alone does
-- less than `least`. Above 1, what the ablation sets off works against it. cosine is that of its decoder row and the unembedding of
-- a target token. is_readout: the share is at least `share`.
--
-- $share number = 0.5: from which share of the effect on a feature counts as a read-out
-- $least number = 0.1: mean effects below it (nats) have no share
with counted as (
    select
        sae_id, layer, feature_id,
        count(*) as n_prompts,
        count(*) filter (where flips) as n_flip,
        count(*) filter (where direct_flips) as n_direct_flip,
        any_value(cosine) as cosine,
        avg(activation) as activation,
        avg(clean - ablated) as effect,
        avg(clean - direct) as direct
    from readouts
    group by sae_id, layer, feature_id
),

shares as (
    select *, case when effect >= $least then direct / effect end as share
    from counted
)

select
    layer, sae_id, feature_id, n_prompts, n_flip, n_direct_flip, cosine, activation, effect, direct, share,
    coalesce(share >= $share, false) as is_readout
from shares
order by n_prompts desc, layer, feature_id, sae_id
