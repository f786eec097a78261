-- Labels that are neither target nor control, of prompts that were answered.
select distinct c.label
from comparisons as c
join prompts as p on p.label = c.label
where p.label_role = 'other'
order by c.label
