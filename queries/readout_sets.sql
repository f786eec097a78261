-- How much of the flips of critical sets is read-out: explained by what their features write into the answer themselves.
--
-- One row per method. Of n_sets, n_flip flip the first token, and of these n_direct_flip do so too when only what the features add at the
-- last token is taken out after the last block, where only norm and unembedding follow. effect is by how much the
-- ablation lowers the log-odds of the target tokens (nats, median over the sets that flip), direct what the direct path alone does,
-- share the median share of the effect that it explains. Above 1, what the ablation sets off works against it.
select
    method,
    count(*) as n_sets,
    count(distinct prompt_id) as n_prompts,
    count(*) filter (where flips) as n_flip,
    count(*) filter (where flips and direct_flips) as n_direct_flip,
    median(clean - ablated) filter (where flips) as effect,
    median(clean - direct) filter (where flips) as direct,
    median((clean - direct) / (clean - ablated)) filter (where flips and clean > ablated) as share
from readout_sets
group by method
order by method
