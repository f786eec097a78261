-- How the token ids of a study read, and which is BOS.
select token_id, min(token), min(piece), bool_or(role = 'bos')
from tokens
where token <> ''
group by token_id
order by token_id
