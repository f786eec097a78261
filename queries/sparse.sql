-- Activations as coordinates of a sparse matrix: rows are prompts or tokens, columns the features that fire.
--
-- row_index and column_index count from 0, by prompt_id (and pos), and by layer, sae_id and feature_id. A prompt's value is the largest over
-- its tokens; pos is null there. `saelake.sparse` makes SciPy and PyTorch matrices of it.
--
-- $layer integer? = null: only this layer
-- $rows prompt|token = prompt: what a row of the matrix is
-- $bos boolean = true: whether BOS tokens count
with bos as (
    select prompt_id, pos
    from tokens
    where role = 'bos' and not $bos
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
    dense_rank() over (order by prompt_id, pos) - 1 as row_index,
    dense_rank() over (order by layer, sae_id, feature_id) - 1 as column_index,
    prompt_id, pos, layer, sae_id, feature_id, activation
from firings
order by row_index, column_index
