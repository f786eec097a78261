-- Over the whole lake: one run as its record tells of it.
--
-- $run_id run: the run
select
    run_id, stage, recipe, parents, config, code_version, schema_version, seed, hardware, versions, started, finished,
    date_diff('millisecond', started, finished) / 1000 as seconds, tables, content_hash, about, withheld,
    list_aggregate([f.n_bytes for f in files], 'sum')::bigint as n_bytes
from all_runs.runs
where run_id = $run_id
order by run_id
