-- Table 1: each way of finding critical features, side by side: what it flips, with how many features, at what cost.
--
-- One row per method, condition, tau and judge. n_refused counts the target prompts refused at baseline, n_searched those that the
-- method has a set for; flip_rate is the share of (prompt, seed or draw) answers that flip among n_refused prompts, where a
-- prompt without a set counts as a failure. Algorithm 1 tests blocks of N candidates: where a prompt has fewer than N, it draws
-- no block and its set is empty. n_untested counts such prompts among n_searched, and flip_rate_of_tested is the share of answers
-- that flip among the others (null if there are none): a low flip_rate with many n_untested says how N fits the pools, not how
-- well the search works. algorithm1_nN is the same search with blocks of N. median_features and largest are over target
-- prompts refused at baseline; n_unique counts distinct features over the sets of all target prompts. n_flipped_once counts prompts
-- that flip in at least one answer; degenerate is the share of answers that are not sensible text. control_answered is the
-- share of control prompts still answered under the same sets. n_evaluations sums what the searches asked for (one search serves
-- every tau), and seconds is what its whole stage took, judging and publishing included. Verdicts that do not apply count
-- nowhere; prompts of no target label are read, beside the oracle, by the recipe's judge of these.
--
-- $judge judge? = null: only this judge
with methods as (
    select distinct method, stage
    from ablations
    where stage in ('algorithm1', 'minimal')
),

-- one evaluation is that of the whole pool: no block was drawn
untested as (
    select s.method, s.prompt_id
    from searches as s
    semi join methods as m on m.method = s.method and m.stage = 'algorithm1'
    group by s.method, s.prompt_id
    having max(s.n_evaluations) = 1
),

answers as (
    select
        a.condition, a.method, a.part, a.control, a.tau, v.judge, p.label_role, a.prompt_id, a.set_id, a.ablation_id, a.seed, a.draw,
        v.refused, v.degenerate, v.flipped
    from verdicts as v
    join ablations as a on a.ablation_id = v.ablation_id
    join prompts as p on p.prompt_id = a.prompt_id
    where v.refused is not null and ($judge is null or v.judge = $judge(p))
),

refused_at_baseline as (
    select judge, prompt_id
    from answers
    where condition = 'none' and label_role = 'target'
    group by judge, prompt_id
    having bool_or(refused)
),

n_refused as (
    select judge, count(*) as n_refused
    from refused_at_baseline
    group by judge
),

set_sizes as (
    select set_id, count(*) as n_features
    from feature_sets
    group by set_id
),

targets as (
    select
        a.condition, if(a.control is null, a.method, null) as method, a.tau, a.judge, a.prompt_id, a.flipped, a.degenerate,
        coalesce(s.n_features, 0) as n_features,
        u.prompt_id is not null as is_untested
    from answers as a
    semi join methods as m on m.method = a.method
    semi join refused_at_baseline as r on r.judge = a.judge and r.prompt_id = a.prompt_id
    left join set_sizes as s on s.set_id = a.set_id
    left join untested as u on u.method = a.method and u.prompt_id = a.prompt_id and a.control is null
    where a.part is null or a.part = 'common'
),

summed as (
    select
        condition, any_value(method) as method, tau, judge,
        count(distinct prompt_id) as n_searched,
        count(distinct prompt_id) filter (where flipped) as n_flipped_once,
        avg(flipped::integer) as share_flipped,
        count(distinct prompt_id) filter (where is_untested) as n_untested,
        avg(flipped::integer) filter (where not is_untested) as share_of_tested,
        avg(degenerate::integer) as degenerate,
        median(n_features) as median_features,
        max(n_features) as largest
    from targets
    group by condition, tau, judge
),

unique_features as (
    select a.condition, a.tau, a.judge, count(distinct (f.sae_id, f.feature_id)) as n_unique
    from answers as a
    join feature_sets as f on f.set_id = a.set_id
    where a.label_role = 'target'
    group by a.condition, a.tau, a.judge
),

controls as (
    select condition, tau, judge, avg(flipped::integer) as control_answered
    from answers
    where label_role = 'control'
    group by condition, tau, judge
),

evaluations as (
    select method, sum(n_evaluations) as n_evaluations
    from searches
    group by method
),

stages as (
    select m.method, epoch(r.finished) - epoch(r.started) as seconds
    from runs as r
    join methods as m on m.stage = r.stage
)

select
    s.condition, s.tau, s.judge, n.n_refused, s.n_searched, s.n_flipped_once,
    s.share_flipped * s.n_searched / n.n_refused as flip_rate,
    s.median_features, s.largest, coalesce(u.n_unique, 0) as n_unique,
    s.degenerate, b.control_answered, e.n_evaluations, round(t.seconds, 1) as seconds,
    s.n_untested, s.share_of_tested as flip_rate_of_tested
from summed as s
join n_refused as n on n.judge = s.judge
left join unique_features as u
    on u.condition = s.condition and u.judge = s.judge and u.tau is not distinct from s.tau
left join controls as b
    on
        b.condition = s.condition and b.judge = if(s.judge = $judge(oracle), $judge(control), s.judge)
        and b.tau is not distinct from s.tau
left join evaluations as e on e.method = s.method
left join stages as t on t.method = s.method
order by s.judge, s.condition, s.tau nulls first
