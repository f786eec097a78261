-- What fires while the model says something: features on the tokens of its answers that hold some words, and on its other answers.
--
-- Of answers that capture.answer_tokens covers (clean, with the direction projected out, and under every `saelake ablate`), each
-- by the tokens that are covered. share is the part of the n_says answers with the words on which a feature fires, other_share the
-- part of the n_others without them; n_tokens and mean_activation are of the answers with the words.
-- Rows come in descending order of share - other_share, ties by mean_activation, layer and feature_id.
--
-- $says text = I cannot: the words; in whatever case, anywhere in the answer
-- $condition condition = none: under what the answers were given; none is the unmodified model
-- $layer layer? = null: only this layer
-- $min_answers integer = 1: only features that fire on this many of the answers with the words
-- $limit integer? = 100: at most this many rows; null for all
with covered as (
    select distinct ablation_id
    from answer_tokens
),

answers as (
    select a.ablation_id, contains(lower(a.completion), lower($says)) as says
    from ablations as a
    semi join covered as c on c.ablation_id = a.ablation_id
    where a.condition = $condition
),

counted as (
    select count(*) filter (where says) as n_says, count(*) filter (where not says) as n_others
    from answers
),

firings as (
    select
        f.layer, f.sae_id, f.feature_id,
        count(distinct f.ablation_id) filter (where a.says) as n_answers,
        count(distinct f.ablation_id) filter (where not a.says) as n_other_answers,
        count(*) filter (where a.says) as n_tokens,
        avg(f.activation) filter (where a.says) as mean_activation
    from answer_activations as f
    join answers as a on a.ablation_id = f.ablation_id
    where $layer is null or f.layer = $layer
    group by f.layer, f.sae_id, f.feature_id
)

select
    f.layer, f.sae_id, f.feature_id, f.n_answers, c.n_says, f.n_answers / c.n_says as share,
    f.n_other_answers, c.n_others, f.n_other_answers / nullif(c.n_others, 0) as other_share, f.n_tokens, f.mean_activation
from firings as f
cross join counted as c
where f.n_answers >= $min_answers
order by share - coalesce(other_share, 0) desc, f.mean_activation desc, f.layer, f.sae_id, f.feature_id
limit $limit
