-- Which prompts hold given words, and what the unmodified model does with them.
--
-- Words are looked for in the user's text, whatever the case; each must occur as a whole word (or as a part of one, see part).
-- Signs without a letter or digit count for nothing. p_refusal_token and refused are of the unmodified model, empty where the lake
-- has no answers yet.
--
-- $words text: the words, separated by spaces; all must occur
-- $part boolean = false: whether a part of a word is enough
-- $label label? = null: only prompts with this label
-- $split split? = null: only prompts of this split
-- $judge judge? = oracle: who reads the answers
-- $limit integer? = 100: at most this many rows; null for all
with words as (
    select distinct trim(regexp_replace(word, '[^\p{L}\p{N}_]+', ' ', 'g')) as word
    from unnest(string_split(lower($words), ' ')) as given(word)
    where regexp_matches(word, '[\p{L}\p{N}_]')
),

texts as (
    select prompt_id, ' ' || regexp_replace(lower(text), '[^\p{L}\p{N}_]+', ' ', 'g') || ' ' as text
    from prompts
),

matched as (
    select t.prompt_id
    from texts as t
    join words as w on contains(t.text, if($part, w.word, ' ' || w.word || ' '))
    group by t.prompt_id
    having count(*) = (select count(*) from words)
),

answers as (
    select a.prompt_id, a.p_refusal_token, v.refused
    from ablations as a
    join prompts as p on p.prompt_id = a.prompt_id
    left join verdicts as v
        on v.ablation_id = a.ablation_id and v.judge = $judge(p)
    where a.condition = 'none'
    qualify row_number() over (partition by a.prompt_id order by v.refused is null, a.ablation_id) = 1
)

select p.prompt_id, p.set, p.split, p.label, p.category, p.n_tokens, a.p_refusal_token, a.refused, p.text
from prompts as p
semi join matched as m on m.prompt_id = p.prompt_id
left join answers as a on a.prompt_id = p.prompt_id
where ($label is null or p.label = $label) and ($split is null or p.split = $split)
order by p.set, p.split, p.label, p.prompt_id
limit $limit
