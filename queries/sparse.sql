-- Activations as coordinates of a sparse matrix: rows are prompts or tokens, columns the features that fire.
--
-- row_index and column_index count from 0, by prompt_id (and pos), and by layer, sae_id and feature_id. A prompt's value is the largest over
-- its tokens; pos is null there. `saelake.sparse` makes SciPy and PyTorch matrices of it.
--
-- $layer integer? = null: only this layer
-- $rows prompt|token = prompt: what a row of the matrix is
-- $bos boolean = true: whether the first token counts
with firings as (
    select
        prompt_id, if($rows = 'token', pos, null) as pos, layer, sae_id, feature_id, max(activation) as activation
    from activations
    where ($layer is null or layer = $layer) and ($bos or pos > 0)
    group by all
)

select
    dense_rank() over (order by prompt_id, pos) - 1 as row_index,
    dense_rank() over (order by layer, sae_id, feature_id) - 1 as column_index,
    prompt_id, pos, layer, sae_id, feature_id, activation
from firings
order by row_index, column_index
