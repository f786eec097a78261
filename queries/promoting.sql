-- Which features promote a token, or suppress it: it is among the tokens whose logits their decoder rows raise, or lower, most.
--
-- n_prompts counts the prompts on which the feature fires: what it would write matters where it does. Spaces around a token count.
-- Rows come by rank, ties in descending order of the logit's size.
--
-- $token text: the token as the table feature_logits spells it
-- $match exact|word|contains = word: equal; equal without the spaces around and whatever the case; or holding it, whatever the case
-- $suppressed boolean = false: those that suppress it, instead
-- $limit integer? = 100: at most this many rows; null for all
select
    l.layer, l.sae_id, l.feature_id, l.token, l.rank, l.logit, m.skewness, m.kurtosis, coalesce(f.n_prompts, 0) as n_prompts
from feature_logits as l
join logit_moments as m on m.sae_id = l.sae_id and m.feature_id = l.feature_id
left join features as f on f.sae_id = l.sae_id and f.feature_id = l.feature_id
where
    l.promotes <> $suppressed
    and case $match
        when 'exact' then l.token = $token
        when 'word' then lower(trim(l.token)) = lower(trim($token))
        else contains(lower(l.token), lower($token))
    end
order by l.rank, abs(l.logit) desc, l.layer, l.sae_id, l.feature_id
limit $limit
