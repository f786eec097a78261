-- What was ablated in each waking pass, matched controls left out, and what woke in it.
select
    w.prompt_id, w.method, w.start, w.source_sae_id, w.source_feature_id,
    list((s.sae_id, s.feature_id) order by s.layer, s.feature_id, s.sae_id) as source,
    (
        select list((k.sae_id, k.feature_id) order by k.layer, k.feature_id, k.sae_id)
        from wakings as k
        where k.ablation_id = w.ablation_id
    ) as woken
from waking_passes as w
join ablations as a on a.ablation_id = w.ablation_id
join feature_sets as s on s.set_id = a.set_id
where w.control is null and list_contains($prompts, w.prompt_id)
group by all
order by w.prompt_id, w.method nulls first, w.start, w.source_sae_id, w.source_feature_id
