-- The sets whose cost on ordinary text is measured: minimal ones of a few prompts, drawn by seed. md5, not hash(): DuckDB may
-- change its hash from one version to the next.
with donors as (
    select prompt_id
    from critical_features
    where method = 'minimal' and start = 0
    group by prompt_id
    order by md5(concat_ws('/', $seed, prompt_id & 4294967295)), prompt_id
    limit $n
)

select c.prompt_id, c.layer, c.sae_id, c.feature_id
from critical_features as c
semi join donors as d on d.prompt_id = c.prompt_id
where c.method = 'minimal' and c.start = 0
order by all
