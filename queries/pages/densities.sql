-- On what share of the tokens that an SAE has read its features fire: their numbers by powers of ten, for the explorer.
--
-- low and high are the ends of a bin, as log10 of the share; features that fire on no token but BOS stand in none. is_here: the
-- bin of the feature.
--
-- $sae_id sae: the SAE
-- $feature_id feature: the feature whose bin is marked
-- $bins integer = 24: how many bins, over six powers of ten
with seen as $step(sae_tokens),

shares as (
    select f.feature_id, greatest(log10(f.n_tokens / c.n_tokens), -6) as density
    from features as f
    join seen as c on c.sae_id = f.sae_id
    where f.sae_id = $sae_id and f.n_tokens > 0 and c.n_tokens > 0
),

binned as (
    select feature_id, least(floor((density + 6) * $bins / 6), $bins - 1)::integer as bin
    from shares
)

select
    b.bin * 6 / $bins - 6 as low, (b.bin + 1) * 6 / $bins - 6 as high, count(n.bin) as n_features,
    coalesce(bool_or(n.feature_id = $feature_id), false) as is_here
from range($bins) as b(bin)
left join binned as n on n.bin = b.bin
group by b.bin
order by b.bin
