-- All answers but those that were read by the same judge when they were given.
select ablation_id, text, first_token, p_refusal_token, completion, label, label_role
from ablations join prompts using (prompt_id)
where
    prompt_id in (select unnest($prompt_ids))
    and ablation_id not in (select ablation_id from verdicts where judge = $judge)
order by ablation_id
