-- Stage 3 (R10, R12): the other features that fire on a prompt, ranked by how closely they go with its critical ones.
--
-- By embedding: the cosine of a feature's embedding with those of the prompt's critical features. By weight: the size of its
-- weight in the linear probe (R12), whatever its sign and whatever the critical features are: half of its first features speak
-- for the control label, and ablating those makes the behaviour likelier. By signed_weight: the weight itself, so those that
-- speak for the target label come first. By alignment: the cosine of its decoder row with its layer's own direction, among the
-- features that the probe knows. Features that never fire on a training prompt of the machine have no embedding and no weight:
-- they are left out, as are the critical ones themselves (see the question stage3_coverage). Ties go to the lower layer, then the
-- lower feature_id. The critical set is the first that Stage 2 found.
--
-- $by embedding|weight|signed_weight|alignment = embedding: what ranks them
-- $model model = fm_20: whose embeddings
-- $similarity maximum|mean = maximum: over the cosines with the critical features
-- $method method = minimal: whose critical sets
-- $tokens integer? = 4: a feature must fire on one of this many last tokens; null for anywhere but on BOS
-- $k integer? = null: only the first k of each prompt
with critical as (
    select prompt_id, sae_id, feature_id
    from critical_features
    where method = $method and start = 0
),

searched as (
    select p.prompt_id, if($tokens is null, 0, p.n_tokens - $tokens) as first_pos
    from prompts as p
    semi join critical as c on c.prompt_id = p.prompt_id
),

active as (
    select distinct a.prompt_id, a.layer, a.sae_id, a.feature_id
    from activations as a
    join searched as s on s.prompt_id = a.prompt_id and a.pos >= s.first_pos
    join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
    anti join critical as c on c.prompt_id = a.prompt_id and c.sae_id = a.sae_id and c.feature_id = a.feature_id
    where t.role <> 'bos'
),

embedded as (
    select sae_id, feature_id, vector::double[] as vector  -- in float, the last digit would rank, and differ by machine and engine
    from fm_embeddings
    where model = $model and $by = 'embedding'
),

likeness as (
    select
        a.prompt_id, a.layer, a.sae_id, a.feature_id,
        list_cosine_similarity(mine.vector, theirs.vector) as cosine
    from active as a
    join embedded as mine on mine.sae_id = a.sae_id and mine.feature_id = a.feature_id
    join critical as c on c.prompt_id = a.prompt_id
    join embedded as theirs on theirs.sae_id = c.sae_id and theirs.feature_id = c.feature_id
),

scored as (
    select
        prompt_id, layer, sae_id, feature_id,
        if($similarity = 'maximum', max(cosine), avg(cosine)) as score
    from likeness
    group by prompt_id, layer, sae_id, feature_id
    union all
    select a.prompt_id, a.layer, a.sae_id, a.feature_id, if($by = 'weight', abs(w.weight), w.weight) as score
    from active as a
    join probe_weights as w on w.sae_id = a.sae_id and w.feature_id = a.feature_id
    where $by in ('weight', 'signed_weight')
    union all
    select a.prompt_id, a.layer, a.sae_id, a.feature_id, c.cosine as score
    from active as a
    join alignments as c on c.direction = 'own' and c.sae_id = a.sae_id and c.feature_id = a.feature_id
    semi join probe_weights as w on w.sae_id = a.sae_id and w.feature_id = a.feature_id
    where $by = 'alignment'
),

ranked as (
    select
        prompt_id, layer, sae_id, feature_id, score,
        row_number() over (partition by prompt_id order by score desc, layer, feature_id, sae_id) as rank
    from scored
    qualify $k is null or rank <= $k
)

select prompt_id, rank, layer, sae_id, feature_id, score
from ranked
order by prompt_id, rank
