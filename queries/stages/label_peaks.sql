-- How strongly each feature of one SAE fires on each prompt of target or control label at most: what label_separation is computed from.
--
-- BOS is left out; a prompt on which a feature is silent has no row.
--
-- $sae_id sae: the SAE
select a.feature_id, p.label_role = 'target' as is_target, max(a.activation) as peak
from activations as a
join prompts as p on p.prompt_id = a.prompt_id
anti join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos and t.role = 'bos'
where a.sae_id = $sae_id and p.label_role <> 'other'
group by a.feature_id, a.prompt_id, p.label_role
order by a.feature_id, peak, is_target
