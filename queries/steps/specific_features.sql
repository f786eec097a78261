-- How many features fire on some category, and how many of them on more prompts of one than chance explains.
with best as (
    select min(q_value) as q_value
    from taxonomy
    group by sae_id, feature_id
)

select count(*), count(*) filter (where q_value <= 0.05)
from best
