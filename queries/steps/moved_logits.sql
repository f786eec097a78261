-- Which tokens' logits each feature of an SAE moves most, side by side as lists: those that this lake has computed, else those that
-- another tool has told.
with told as (
    select feature_id, if(promotes, 'promoted', 'suppressed') as side, rank, token, token_id, logit, 0 as turn, run_id
    from feature_logits
    where sae_id = $sae_id
    union all
    select feature_id, side, rank, token, null, logit, 1, run_id
    from reported_logits
    where sae_id = $sae_id
)

select
    feature_id,
    side,
    list(token order by rank) as tokens,
    list(logit order by rank) as logits,
    list(token_id order by rank) filter (where token_id is not null) as token_ids
from told
group by feature_id, side, turn, run_id
qualify row_number() over (partition by feature_id, side order by turn, run_id) = 1
