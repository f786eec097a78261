-- On how many labelled prompts of each category a feature fires: what the taxonomy (R18) is computed from.
--
-- literal: the feature is non-zero anywhere in the prompt, on BOS and the template too, which are alike in all prompts. user: on one
-- of the user's tokens. Features that fire on no labelled prompt are absent; of the others every category has a row.
--
-- $label label? = null: the prompts' label; null for the target label
-- $sets prompt_sets? = null: only these prompt sets, separated by commas
-- $layer layer? = null: only this layer
with labelled as (
    select prompt_id, category
    from prompts
    where
        if($label is null, label_role = 'target', label = $label)
        and category is not null
        and ($sets is null or list_contains($sets, set))
),

categories as (
    select
        l.category,
        count(distinct l.prompt_id) as n_prompts,
        count(*) filter (where t.role = 'user') as n_category_tokens
    from labelled as l
    join tokens as t on t.prompt_id = l.prompt_id
    group by l.category
),

user_tokens as (
    select t.prompt_id, t.pos
    from tokens as t
    semi join labelled as l on l.prompt_id = t.prompt_id
    where t.role = 'user'
),

firings as (
    select a.sae_id, a.layer, a.feature_id, a.prompt_id, count(*) as n_tokens, count(u.pos) as n_user_tokens
    from activations as a
    semi join labelled as l on l.prompt_id = a.prompt_id
    left join user_tokens as u on u.prompt_id = a.prompt_id and u.pos = a.pos
    where $layer is null or a.layer = $layer
    group by a.sae_id, a.layer, a.feature_id, a.prompt_id
),

counted as (
    select
        f.sae_id, f.layer, f.feature_id, l.category,
        count(*) as n_literal,
        count(*) filter (where f.n_user_tokens > 0) as n_user,
        sum(f.n_user_tokens) as n_user_tokens
    from firings as f
    join labelled as l on l.prompt_id = f.prompt_id
    group by f.sae_id, f.layer, f.feature_id, l.category
),

firing as (
    select distinct sae_id, layer, feature_id
    from counted
)

select
    f.sae_id, f.layer, f.feature_id, c.category, c.n_prompts,
    coalesce(n.n_literal, 0) as n_literal,
    coalesce(n.n_user, 0) as n_user,
    c.n_category_tokens,
    coalesce(n.n_user_tokens, 0)::bigint as n_user_tokens
from firing as f
cross join categories as c
left join counted as n on n.sae_id = f.sae_id and n.feature_id = f.feature_id and n.category = c.category
order by f.layer, f.feature_id, f.sae_id, c.category
