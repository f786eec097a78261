-- Whether a change of a kind and budget brings the behaviour back on a prompt: at a layer's site, and (null) at any.
select p.label_role, r.source, r.control, r.layer, r.kind, r.budget, r.prompt_id, bool_or(r.shown) as recovered
from recoveries as r
join prompts as p on p.prompt_id = r.prompt_id
where not r.shown_before
group by grouping sets (
    (p.label_role, r.source, r.control, r.layer, r.kind, r.budget, r.prompt_id),
    (p.label_role, r.source, r.control, r.kind, r.budget, r.prompt_id)
)
order by all
