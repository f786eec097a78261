-- Where the changes lie that bring the behaviour back: by site and kind, at the smallest budget at which they do.
--
-- Over target prompts under the sets themselves. n_prompts do not show the behaviour while the set is held, n_recovered do with a
-- change at this site. Of these, medians: norm, the change's length relative to the stream; drift, how far it moves what the set's
-- features read (null where none reads at the site or after it); cosine with the chosen direction; in_features and in_error, the
-- shares of it within the decoder rows of other features that fire there, and within what the SAE does not reconstruct; from_end, how
-- many tokens before the prompt's end it is largest. behind: the share whose site lies after all of the set. `saelake audit` makes it.
--
-- $source minimal|top_k|common = minimal: the source of the sets
with depths as $step(site_depths),

deepest as (
    select f.set_id, max(d.depth) as depth
    from feature_sets as f
    join depths as d on d.sae_id = f.sae_id and d.place = 'writes'
    group by f.set_id
),

searched as (
    select r.*, p.n_tokens - 1 - r.pos as from_end, s.depth > d.depth as is_behind
    from recoveries as r
    join prompts as p on p.prompt_id = r.prompt_id
    left join deepest as d on d.set_id = r.set_id
    left join depths as s on s.sae_id = r.sae_id and s.place = 'reads'
    where r.source = $source and r.control is null and p.label_role = 'target' and not r.shown_before
),

counted as (
    select layer, sae_id, kind, count(distinct prompt_id) as n_prompts
    from searched
    group by layer, sae_id, kind
),

first as (
    select *
    from searched
    where shown
    qualify row_number() over (partition by prompt_id, sae_id, kind order by budget) = 1
),

summed as (
    select
        layer, sae_id, kind,
        count(*) as n_recovered,
        median(budget) as budget,
        median(norm) as norm,
        median(drift) as drift,
        median(cosine) as cosine,
        median(in_features) as in_features,
        median(in_error) as in_error,
        median(from_end) as from_end,
        avg(is_behind::integer) as behind
    from first
    group by layer, sae_id, kind
)

select
    c.layer, c.sae_id, c.kind, c.n_prompts, coalesce(s.n_recovered, 0) as n_recovered, s.budget, s.norm, s.drift, s.cosine,
    s.in_features, s.in_error, s.from_end, s.behind
from counted as c
left join summed as s on s.layer = c.layer and s.sae_id = c.sae_id and s.kind = c.kind
order by c.layer, c.sae_id, c.kind
