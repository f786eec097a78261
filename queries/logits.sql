-- Which tokens the decoder rows of features promote and suppress, most first: what they write.
--
-- A row is read through the final norm and the unembedding as if the residual stream were that row alone; the norm sets its length, so
-- compare logits of one feature only. skewness above 0: it promotes a few tokens; kurtosis: how much it singles out a few. Features
-- whose rows are zeros have none. The effect on the answers' own target tokens, activations included, is in `readouts`.
--
-- $features features: which features
-- $top integer = 10: how many tokens of each side
with sides as (
    select
        layer, sae_id, feature_id, rank,
        max(if(promotes, token, null)) as promoted, max(if(promotes, logit, null)) as promoted_logit,
        max(if(promotes, null, token)) as suppressed, max(if(promotes, null, logit)) as suppressed_logit
    from $features(feature_logits)
    where rank <= $top
    group by layer, sae_id, feature_id, rank
)

select
    s.layer, s.sae_id, s.feature_id, s.rank, s.promoted, s.promoted_logit, s.suppressed, s.suppressed_logit, m.skewness, m.kurtosis
from sides as s
join logit_moments as m on m.sae_id = s.sae_id and m.feature_id = s.feature_id
order by s.layer, s.feature_id, s.sae_id, s.rank
