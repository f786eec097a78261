-- What the critical features write: the tokens that their decoder rows promote and suppress most (see `logits`).
--
-- n_prompts counts the prompts in whose critical sets a feature is. A feature that promotes a target token itself may only write the
-- answer out: `readouts` says how much of its effect is that.
--
-- $method method = minimal: whose critical sets
-- $top integer = 5: how many tokens of each side
with critical as (
    select sae_id, feature_id, count(distinct prompt_id) as n_prompts
    from critical_features
    where method = $method
    group by sae_id, feature_id
),

written as (
    select
        l.layer, l.sae_id, l.feature_id,
        string_agg(trim(l.token), ' · ' order by l.rank) filter (where l.promotes) as promoted,
        string_agg(trim(l.token), ' · ' order by l.rank) filter (where not l.promotes) as suppressed
    from feature_logits as l
    semi join critical as c on c.sae_id = l.sae_id and c.feature_id = l.feature_id
    where l.rank <= $top
    group by l.layer, l.sae_id, l.feature_id
)

select w.layer, w.sae_id, w.feature_id, c.n_prompts, w.promoted, w.suppressed, m.skewness, m.kurtosis
from written as w
join critical as c on c.sae_id = w.sae_id and c.feature_id = w.feature_id
join logit_moments as m on m.sae_id = w.sae_id and m.feature_id = w.feature_id
order by c.n_prompts desc, w.layer, w.feature_id, w.sae_id
