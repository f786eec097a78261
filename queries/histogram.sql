-- How strongly given features fire: the numbers of tokens by activation, in bins of equal width up to the largest. BOS is left out.
--
-- low and high are the ends of a bin, high included; empty bins have a row too.
--
-- $features features: which features
-- $bins integer = 20: how many bins
with firings as (
    select a.layer, a.sae_id, a.feature_id, a.activation
    from $features(activations) as a
    anti join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos and t.role = 'bos'
),

widths as (
    select layer, sae_id, feature_id, max(activation)::double / $bins as width
    from firings
    group by layer, sae_id, feature_id
),

counted as (
    select f.sae_id, f.feature_id, greatest(ceil(f.activation / w.width)::integer - 1, 0) as bin, count(*) as n_tokens
    from firings as f
    join widths as w on w.sae_id = f.sae_id and w.feature_id = f.feature_id
    group by f.sae_id, f.feature_id, bin
)

select
    w.layer, w.sae_id, w.feature_id, b.bin, b.bin * w.width as low, (b.bin + 1) * w.width as high,
    coalesce(c.n_tokens, 0) as n_tokens
from widths as w
cross join range($bins) as b(bin)
left join counted as c on c.sae_id = w.sae_id and c.feature_id = w.feature_id and least(c.bin, $bins - 1) = b.bin
order by w.layer, w.sae_id, w.feature_id, b.bin
