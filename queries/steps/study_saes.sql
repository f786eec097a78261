-- The SAEs of a study, each with a run that describes it.
select s.sae_id, s.name, s.layer, s.width, min(s.run_id)
from all_runs.saes as s
where s.run_id in (select run_id from runs)
group by s.sae_id, s.name, s.layer, s.width
order by s.layer, s.sae_id
