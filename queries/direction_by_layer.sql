-- How far the last token's residual stream points along the refusal direction, layer by layer, label by label (R4).
--
-- mean is over the prompts of a label, sd their standard deviation, low and high the 95% t interval of the mean (within 0.2% from
-- 6 prompts on). separation is the chance that a target prompt lies higher than a control one, ties half: 0.5 is none,
-- 1 complete. is_chosen marks the layer whose direction the study uses.
--
-- $direction own|chosen = chosen: the direction of each layer, or the study's one direction (the paper)
with measured as (
    select c.layer, p.label, p.label_role, c.prompt_id, c.cosine::double as cosine
    from layer_cosines as c
    join prompts as p on p.prompt_id = c.prompt_id
    where c.direction = $direction
),

ranked as (
    select
        layer, label_role, cosine,
        rank() over (partition by layer order by cosine) + (count(*) over (partition by layer, cosine) - 1) / 2 as mid_rank
    from measured
    where label_role <> 'other'
),

-- Mann and Whitney: U = rank sum - n (n + 1) / 2
separations as (
    select
        layer,
        (
            sum(mid_rank) filter (where label_role = 'target')
            - count(*) filter (where label_role = 'target') * (count(*) filter (where label_role = 'target') + 1) / 2
        ) / nullif(count(*) filter (where label_role = 'target') * count(*) filter (where label_role = 'control'), 0) as separation
    from ranked
    group by layer
),

means as (
    select layer, label, label_role, count(*) as n_prompts, avg(cosine) as mean, stddev_samp(cosine) as sd, nullif(count(*) - 1, 0) as df
    from measured
    group by layer, label, label_role
),

-- Cornish and Fisher's expansion of the t quantile, in 1 / df
bands as (
    select *, (1.959964 + (2.372260 + (2.822481 + 2.555852 / df) / df) / df) * sd / sqrt(n_prompts) as half_width
    from means
)

select
    b.layer, b.label, b.n_prompts, b.mean, b.sd,
    b.mean - b.half_width as low,
    b.mean + b.half_width as high,
    s.separation,
    coalesce(d.chosen, false) as is_chosen
from bands as b
join separations as s on s.layer = b.layer
left join directions as d on d.layer = b.layer
order by b.layer, b.label_role desc, b.label
