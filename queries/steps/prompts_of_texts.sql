-- The prompts of a study that have one of the asked texts, without those that an import brought.
select text, min(prompt_id), min_by(run_id, prompt_id)
from prompts
semi join asked_texts using (text)
where not starts_with(run_id, $imported)
group by text
