-- What fires on prompts whose ids follow one another, of the SAEs in column_of, with the column of a matrix that each feature has.
select prompt_id, pos, s.first + feature_id as place, activation
from activations_by_prompt as a
join column_of as s on s.layer = a.layer and s.sae_id = a.sae_id
where prompt_id between $first and $last and a.layer in (select layer from column_of)
