-- The judges that read an answer.
select distinct judge
from verdicts
where flipped is not null
order by judge
