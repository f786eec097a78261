-- How many prompts with one of the asked texts a study has its own answers to, under a condition.
select count(distinct a.prompt_id)
from ablations as a
join prompts as p on p.prompt_id = a.prompt_id
semi join asked_texts as t on t.text = p.text
where a.condition = $condition and not starts_with(a.stage, $imported)
