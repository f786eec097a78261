-- Ablated passes a prompt of the searches that atlas_rankings ranks by; not of Algorithm 1 with other blocks.
select method, sum(n_evaluations) / count(distinct prompt_id)
from searches
where method in ('minimal', 'algorithm1')
group by method
