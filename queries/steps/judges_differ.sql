-- How often each two judges differ on whether an answer flips.
select v.judge, w.judge, count(*), avg((v.flipped <> w.flipped)::integer)
from verdicts as v
join verdicts as w on w.ablation_id = v.ablation_id and w.judge > v.judge
where v.flipped is not null and w.flipped is not null
group by all
order by all
