-- How deep in the network each SAE reads and writes: in the order in which a pass comes to sites.
-- A name that is none of theirs is the residual stream behind its block.
with hooks as (
    select sae_id, layer, hook, 'reads' as place
    from saes
    union all
    select sae_id, layer, coalesce(hook_out, hook) as hook, 'writes' as place
    from saes
),

by_hook as (
    select
        sae_id, place,
        10 * coalesce(try_cast(regexp_extract(hook, 'blocks\.(\d+)\.', 1) as integer), layer) + coalesce(nullif(array_position(
            ['hook_resid_pre', 'hook_z', 'hook_attn_out', 'hook_resid_mid', 'hook_normalized', 'hook_in', 'hook_mlp_out', 'hook_resid_post'],
            regexp_extract(hook, '[^.]+$')
        ), 0), 8) as depth
    from hooks
)

select sae_id, place, depth
from by_hook
