-- What the filters of [direction] say of each layer's direction.
select layer, n_prompts, n_flipped, kl, induced, left_out
from directions
order by layer
