-- How much of the critical and of the other active features Stage 3 can rank at all (R10).
--
-- A feature that fires on no training prompt of the machine has no embedding; of the active ones only those in the machine's
-- layers are counted. One row: n_prompts have a critical set, n_ranked of them have a critical feature with an embedding (the
-- others count as failures of Stage 3), none where nothing was searched or there is no machine; n_critical and n_active count
-- (prompt, feature) pairs, unembedded those without an embedding.
--
-- $model model = fm_20: whose embeddings
-- $method method = minimal: whose critical sets
-- $tokens integer? = 4: active means firing on one of this many last tokens; null for anywhere but on BOS
with critical as (
    select c.prompt_id, c.sae_id, c.feature_id, e.vector is not null as is_embedded
    from critical_features as c
    semi join fm_embeddings as any_of on any_of.model = $model
    left join fm_embeddings as e on e.sae_id = c.sae_id and e.feature_id = c.feature_id and e.model = $model
    where c.method = $method and c.start = 0
),

of_prompts as (
    select prompt_id, count(*) as n_critical, count(*) filter (where not is_embedded) as n_unembedded
    from critical
    group by prompt_id
),

firing as (
    select distinct a.prompt_id, a.sae_id, a.feature_id
    from activations as a
    join prompts as p on p.prompt_id = a.prompt_id
    join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
    semi join critical as c on c.prompt_id = a.prompt_id
    semi join fm_embeddings as e on e.sae_id = a.sae_id and e.model = $model
    where t.role <> 'bos' and ($tokens is null or a.pos >= p.n_tokens - $tokens)
),

active as (
    select count(*) as n_active, count(*) filter (where e.vector is null) as active_unembedded
    from firing as f
    left join fm_embeddings as e on e.sae_id = f.sae_id and e.feature_id = f.feature_id and e.model = $model
    anti join critical as c on c.prompt_id = f.prompt_id and c.sae_id = f.sae_id and c.feature_id = f.feature_id
),

summed as (
    select
        count(*) as n_prompts,
        count(*) filter (where n_unembedded < n_critical) as n_ranked,
        sum(n_critical) as n_critical,
        sum(n_unembedded) as critical_unembedded
    from of_prompts
    having count(*) > 0
)

select s.n_prompts, s.n_ranked, s.n_critical, s.critical_unembedded, a.n_active, a.active_unembedded
from summed as s
cross join active as a
order by s.n_prompts
