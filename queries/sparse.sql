-- Activations as coordinates of a sparse matrix: rows are all prompts or all tokens, columns all features of the SAEs.
--
-- row_index and column_index count from 0, by prompt_id (and pos), and by layer, sae_id and feature_id, whether anything fires
-- there or not. A prompt's value is the largest over its tokens; pos is null there. `saelake.sparse` makes SciPy and PyTorch
-- matrices of it.
--
-- $layer layer? = null: only the SAEs of this layer
-- $rows prompt|token = prompt: what a row of the matrix is
-- $bos boolean = true: whether activations on BOS tokens count; what is not a BOS token is read from tokens
with no_tokens as (
    select null::bigint as prompt_id, null::smallint as pos, null::varchar as role
    where false
),

bos as (
    select prompt_id, pos
    from $bos(no_tokens|tokens)
    where role = 'bos'
),

saes_asked as (
    select layer, sae_id, (sum(width) over (order by layer, sae_id) - width)::bigint as first_column
    from saes
    where $layer is null or layer = $layer
),

of_prompts as (
    select
        prompt_id, row_number() over (order by prompt_id) - 1 as row_index,
        (sum(n_tokens) over (order by prompt_id) - n_tokens)::bigint as first_row
    from prompts
),

firings as (
    select
        a.prompt_id, if($rows = 'token', a.pos, null) as pos, a.layer, a.sae_id, a.feature_id, max(a.activation) as activation
    from activations as a
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
    where $layer is null or a.layer = $layer
    group by all
)

select
    coalesce(p.first_row + f.pos, p.row_index) as row_index,
    s.first_column + f.feature_id as column_index,
    f.prompt_id, f.pos, f.layer, f.sae_id, f.feature_id, f.activation
from firings as f
join of_prompts as p on p.prompt_id = f.prompt_id
join saes_asked as s on s.layer = f.layer and s.sae_id = f.sae_id
order by row_index, column_index
