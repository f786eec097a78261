-- The features of some populations ($populations), by SAE.
select sae_id, list(distinct feature_id order by feature_id)
from populations
where list_contains($populations, population)
group by sae_id
