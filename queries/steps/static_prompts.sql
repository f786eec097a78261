-- What the static pages know of every prompt before they read Parquet: its labels, where its BOS is, which is not counted, and its
-- hash, by which samples are drawn.
with begun as (
    select prompt_id, min(pos) filter (where role = 'bos') as bos
    from tokens
    group by prompt_id
)

select prompt_id, p.label, p.category, p.prompt_hash, b.bos
from prompts as p
full join begun as b using (prompt_id)
order by prompt_id
