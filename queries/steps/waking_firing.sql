-- What fires on some prompts ($prompts) in the clean pass, as the table that waking_kept compares with.
create or replace temp table firing as
select distinct prompt_id, sae_id, feature_id
from activations
where list_contains($prompts, prompt_id)
