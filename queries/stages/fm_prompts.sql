-- The prompts that the factorisation machine and the probe learn from (R9), with their split.
--
-- Within each label prompts are ordered by a hash of the seed and their place in their run; the first go to test, the next to
-- val, the rest to train. These splits are the machine's own, not the study's.
--
-- $sets prompt_sets? = null: names of prompt sets, separated by commas; null for all
-- $balanced boolean = true: as many prompts of each label as the rarer one has
-- $val number = 0.1: share of validation prompts
-- $test number = 0.1: share of test prompts
-- $seed integer = 0: seed of the order
-- $leave_out split? = null: none of this split of the study: those that are ablated, so that nothing is learned from them
with ordered as (
    -- md5, not hash(): DuckDB may change its hash from one version to the next
    select
        prompt_id, label,
        row_number() over (partition by label order by md5(concat_ws('/', $seed, prompt_id & 4294967295)), prompt_id) as place
    from prompts
    where
        label_role <> 'other' and ($sets is null or list_contains($sets, set))
        and ($leave_out is null or split <> $leave_out)
),

sizes as (
    select label, count(*) as n
    from ordered
    group by label
),

taken as (
    select label, if($balanced, min(n) over (), n) as n
    from sizes
)

select
    o.prompt_id,
    o.label,
    case
        when o.place <= round(t.n * $test) then 'test'
        when o.place <= round(t.n * ($test + $val)) then 'val'
        else 'train'
    end as split
from ordered as o
join taken as t on t.label = o.label
where o.place <= t.n
order by o.prompt_id
