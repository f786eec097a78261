-- The texts on which each feature of an SAE fires most, with every place where it does, BOS left out; no text of restricted sets.
with shown as (
    select prompt_id
    from prompts
    where n_tokens > 0 and not list_contains($restricted, "set")
),

bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos'
),

fired as (
    select a.feature_id, a.prompt_id, a.pos, a.activation
    from activations as a
    semi join shown on shown.prompt_id = a.prompt_id
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
    where a.layer = $layer and a.sae_id = $sae_id
)

select
    feature_id,
    prompt_id,
    max(activation) as activation,
    min_by(pos, (-activation, pos)) as pos,
    list(pos order by pos) as places,
    list(activation order by pos) as activations
from fired
group by feature_id, prompt_id
qualify row_number() over (partition by feature_id order by max(activation) desc, prompt_id) <= $tops
order by feature_id, activation desc, prompt_id
