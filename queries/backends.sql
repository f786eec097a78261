-- Where libraries that run the model diverge: the first place of a pass, and the position, at which they read something else.
--
-- One row for each backend that `saelake compare` has read the study's prompts with, beside the reference. Tokens come first:
-- where a backend tokenises a prompt otherwise, site is token ids, and values are compared on the other prompts. Then values, in
-- the order of a pass: layer by layer, and in a layer as its block computes them. They diverge (`parts`) where the distance of
-- two vectors (difference, of the reference's length) is past what rounding explains (floor): twice the farthest that two sound
-- passes of the reference lie apart there, or half of the time at that site, whichever is more; twice, as both libraries may be
-- off. pos is the first position there that diverges, prompt_id the first prompt with it. Where nothing diverges, site is null,
-- and difference and floor are those that come nearest to each other. n_parted counts readings that diverge, of n_compared.
--
-- $reference text = transformers: the backend that the others are compared with; its runs hold the noise
-- $backend text? = null: only this one
with here as (
    select *
    from readings
    where backend = $reference
),

others as (
    select *
    from readings
    where backend <> $reference and ($backend is null or backend = $backend)
),

backends as (
    select distinct backend
    from others
),

-- The same text is read alike if every position has the same id in both.
tokens_here as (
    select distinct b.backend, h.prompt_id, h.pos, h.token_id
    from here as h
    cross join backends as b
    where h.prompt_id in (select prompt_id from others)
),

tokens_others as (
    select distinct backend, prompt_id, pos, token_id
    from others
),

other_tokens as (
    select backend, prompt_id, pos, a.token_id as reference_token_id, b.token_id
    from tokens_here as a
    full join tokens_others as b using (backend, prompt_id, pos)
    where a.token_id is distinct from b.token_id
),

floors as (
    select layer, site, prompt_id, pos, 2 * greatest(noise, median(noise) over (partition by layer, site)) as floor
    from here
),

compared as (
    select
        o.backend, o.layer, o.site, o.prompt_id, o.pos, o.token_id,
        coalesce(list_distance(h.sketch, o.sketch) / nullif(h.norm, 0), list_distance(h.sketch, o.sketch)) as difference, f.floor,
        list_position(
            ['resid_pre', 'z', 'attn_out', 'resid_mid', 'mlp_in_unit', 'mlp_in', 'mlp_out', 'resid_post', 'log_probs'], o.site
        ) as place
    from others as o
    join here as h on h.prompt_id = o.prompt_id and h.layer = o.layer and h.site = o.site and h.pos = o.pos
    join floors as f on f.prompt_id = o.prompt_id and f.layer = o.layer and f.site = o.site and f.pos = o.pos
    anti join other_tokens as t on t.backend = o.backend and t.prompt_id = o.prompt_id
),

marked as (
    select *, coalesce(not isfinite(difference) or difference > floor, true) as parts
    from compared
),

found as (
    select
        backend, -1 as layer, 'token ids' as site, prompt_id, pos, token_id, reference_token_id,
        null::double as difference, null::double as floor, true as parts, 0 as place
    from other_tokens
    union all
    select backend, layer, site, prompt_id, pos, token_id, token_id, difference, floor, parts, place
    from marked
),

counted as (
    select backend, count(*) filter (where parts) as n_parted, count(*) as n_compared
    from found
    group by backend
),

-- The first place that parts, or what comes nearest to parting.
ranked as (
    select
        *,
        row_number() over (
            partition by backend
            order by
                parts desc, if(parts, layer, 0), if(parts, place, 0), if(parts, pos, 0),
                if(parts, 0, -difference / nullif(floor, 0)) nulls last, prompt_id, layer, place, pos
        ) as rank
    from found
)

select
    r.backend, r.parts, if(r.parts and r.layer >= 0, r.layer, null)::smallint as layer, if(r.parts, r.site, null) as site,
    if(r.parts, r.prompt_id, null) as prompt_id, if(r.parts, r.pos, null) as pos, if(r.parts, r.token_id, null) as token_id,
    if(r.parts, r.reference_token_id, null) as reference_token_id, r.difference, r.floor, c.n_parted, c.n_compared
from ranked as r
join counted as c using (backend)
where r.rank = 1
order by r.backend
