-- The first features by one order of the explorer's list (the table static_listed), of each SAE and of all.
with placed as (
    select
        layer, sae_id, feature_id,
        row_number() over (
            order by
                case $order
                    when 'critical' then n_critical
                    when 'auroc' then abs(auroc - 0.5)
                    when 'effect' then effect
                    when 'recovered' then recovered
                    when 'q' then -q
                    when 'prompts' then n_prompts
                    when 'largest' then max_activation
                end desc nulls last,
                if($order = 'feature', null, abs(auroc - 0.5)) desc nulls last,
                layer, feature_id, sae_id
        ) as place
    from static_listed
),

within as (
    select layer, sae_id, feature_id, place, row_number() over (partition by sae_id order by place) as place_in_sae
    from placed
)

select sae_id, feature_id, place, place_in_sae
from within
where place <= $n or place_in_sae <= $n
order by place
