-- The refusal direction of each layer, and why one of them was chosen (R3).
--
-- flip_rate is the share of the n_prompts selection prompts that flip when the direction is projected out of every layer; norm the
-- length of the difference of means, kl what the projection does to control prompts (nats), induced the share of control prompts that
-- are refused when the direction is added. admitted: it passes the recipe's filters; left_out: which of them it does not pass (late:
-- it is among the last layers, kl, induced), or outdone: by first tokens or whole answers another one does better, and the rest was not
-- asked. Where no layer passes, none is chosen, and the analysis ends there.
select layer, n_prompts, n_flipped / nullif(n_prompts, 0) as flip_rate, p_refusal_token, norm, kl, induced, admitted, chosen, left_out
from directions
order by layer
