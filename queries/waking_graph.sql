-- The graph "ablating A wakes B" of each prompt, edge by edge: features, layers, tokens and strength (R13).
--
-- The source A is one critical feature that fires on the prompt, or its whole critical set (null, with method and start). tokens
-- lists where B fires then, as pos:token. q_value is that of the edge over all prompts, null for sets beside the first minimal one.
--
-- $prompt_id prompt? = null: only this prompt
-- $q number? = null: only edges that survive the matched controls at this false discovery rate
-- $sources one|set|any = one: edges from single features, from whole sets, or both
with passes as (
    select ablation_id, prompt_id, method, start, source_layer, source_sae_id, source_feature_id
    from waking_passes
    where
        control is null
        and ($prompt_id is null or prompt_id = $prompt_id)
        and case $sources
            when 'one' then method is null
            when 'set' then method is not null
            else true
        end
),

woken as (
    select p.*, w.sae_id, w.layer, w.feature_id, w.n_tokens, w.max_activation, e.q_value
    from passes as p
    join wakings as w on w.ablation_id = p.ablation_id
    left join waking_edges as e
        on e.source_sae_id is not distinct from p.source_sae_id
        and e.source_feature_id is not distinct from p.source_feature_id
        and e.sae_id = w.sae_id and e.feature_id = w.feature_id
        and (p.method is null or (p.method = 'minimal' and p.start = 0))
    where $q is null or e.q_value <= $q
),

places as (
    select w.ablation_id, w.sae_id, w.feature_id, string_agg(t.pos || ':' || t.token, ' ' order by t.pos) as tokens
    from woken as w
    join reactivations as r on r.ablation_id = w.ablation_id and r.sae_id = w.sae_id and r.feature_id = w.feature_id
    join tokens as t on t.prompt_id = w.prompt_id and t.pos = r.pos
    group by w.ablation_id, w.sae_id, w.feature_id
)

select
    w.prompt_id, w.method, w.start, w.source_layer, w.source_sae_id, w.source_feature_id,
    w.layer, w.sae_id, w.feature_id, w.max_activation, w.n_tokens, p.tokens, w.q_value
from woken as w
join places as p on p.ablation_id = w.ablation_id and p.sae_id = w.sae_id and p.feature_id = w.feature_id
order by
    w.prompt_id, w.method nulls first, w.start, w.source_layer, w.source_feature_id, w.source_sae_id,
    w.layer, w.feature_id, w.sae_id
