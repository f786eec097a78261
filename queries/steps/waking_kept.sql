-- Of what fires in ablated passes what is kept: of matched controls only what a waking can be made of, since all that fires
-- would be five times as many rows that nobody reads.
with controls as (
    select *
    from captured
    where is_control
)

select *
from controls
anti join firing using (prompt_id, sae_id, feature_id)
union all
select *
from captured
where not is_control
order by all
