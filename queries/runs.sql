-- Over the whole lake: every published run and where it comes from, oldest first.
--
-- current says whether plain table names show the run. rows counts the rows of each of its tables. content_hash covers the
-- rows, not times or hardware: equal hashes are equal content.
--
-- $stage stage? = null: only runs of this stage
-- $study recipe? = null: only runs of the study that published them first, by its recipe's name
-- $current boolean = false: only runs that plain table names show, whichever study published them first
with counted as (
    select
        run_id,
        list_aggregate([t.name || ' ' || t.n_rows for t in tables], 'string_agg', ', ') as rows
    from all_runs.runs
)

select
    r.run_id,
    r.stage,
    r.recipe,
    r.run_id in (select run_id from runs) as current,
    r.parents,
    r.started,
    date_diff('millisecond', r.started, r.finished) / 1000 as seconds,
    counted.rows,
    r.content_hash,
    r.seed,
    r.hardware ->> 'device' as device,
    r.versions ->> 'saelake' as saelake,
    r.versions ->> 'torch' as torch,
    r.versions ->> 'transformers' as transformers,
    r.versions ->> 'sae-lens' as sae_lens,
    r.versions ->> 'duckdb' as duckdb
from all_runs.runs as r
join counted on counted.run_id = r.run_id
where
    ($stage is null or r.stage = $stage)
    and ($study is null or r.recipe = $study)
    and (not $current or r.run_id in (select run_id from runs))
order by r.started, r.run_id
