-- The features that a factorisation machine pairs most strongly with given ones.
--
-- Ranked by the cosine of the embeddings or by the interaction itself, the dot product (what the pair adds to the logit of the
-- target label when both fire as strongly as they ever did in training). Ties go to the lower layer, then the lower feature_id.
--
-- $features features: which features
-- $n integer = 10: partners of each
-- $model model = fm_20: whose embeddings
-- $order_by cosine|interaction = cosine: what ranks them; interaction by its size, whatever its sign
-- $min_train integer = 1: only partners that fire on at least this many training prompts
with given as (
    select layer, sae_id, feature_id, vector
    from $features(fm_embeddings)
    where model = $model
),

pairs as (
    select
        g.layer, g.sae_id, g.feature_id,
        e.layer as partner_layer, e.sae_id as partner_sae_id, e.feature_id as partner_id, e.n_train,
        list_cosine_similarity(g.vector::double[], e.vector::double[]) as cosine,
        list_dot_product(g.vector::double[], e.vector::double[]) as interaction
    from given as g
    join fm_embeddings as e
        on e.model = $model and e.n_train >= $min_train and (e.sae_id, e.feature_id) <> (g.sae_id, g.feature_id)
),

ranked as (
    select
        layer, sae_id, feature_id, partner_layer, partner_sae_id, partner_id, n_train, cosine, interaction,
        row_number() over (
            partition by sae_id, feature_id
            order by if($order_by = 'cosine', cosine, abs(interaction)) desc, partner_layer, partner_id, partner_sae_id
        ) as rank
    from pairs
    qualify rank <= $n
)

select layer, sae_id, feature_id, rank, partner_layer, partner_sae_id, partner_id, n_train, cosine, interaction
from ranked
order by layer, sae_id, feature_id, rank
