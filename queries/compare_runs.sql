-- Over the whole lake: two runs with answers side by side, prompt by prompt: what differs, and by how much.
--
-- Answers are matched by the prompt's text and everything that was asked of it: condition, K, tau, seed, draw, and the features that
-- are held, where, and whether at 0. Where a run asked the same several times, as of two starts that end in one set, the first is
-- matched with the first. difference = p_b - p_a. Answers that only one of the runs has are counted nowhere: `saelake runs` shows how
-- many each has.
--
-- $a run: the first run, as `saelake runs` names it
-- $b run: the second run
-- $differing boolean = true: only answers whose text or first token differs, or whose p does by more than min_difference
-- $min_difference number = 0.01: the smallest difference of p that counts
-- $limit integer? = 100: at most this many rows; null for all
with hashes as (
    select distinct prompt_id, prompt_hash, label, text
    from all_runs.prompts
),

-- The values of clamps are left out: they are measured, and may differ in the last digit.
sets as (
    select
        run_id, set_id,
        string_agg(
            concat_ws(':', sae_id, feature_id, positions, if(value = 0, 'off', 'held')), ' '
            order by sae_id, feature_id, positions nulls first, value
        ) as held
    from all_runs.feature_sets
    where run_id in ($a, $b)
    group by run_id, set_id
),

asked as (
    select
        a.run_id, h.prompt_hash, h.label, h.text, a.condition, a.k, a.tau, a.seed, a.draw, coalesce(s.held, '') as held,
        a.p_refusal_token, a.first_token, a.completion,
        row_number() over (
            partition by a.run_id, h.prompt_hash, a.condition, a.k, a.tau, a.seed, a.draw, coalesce(s.held, '')
            order by a.ablation_id
        ) as number
    from all_runs.ablations as a
    join hashes as h on h.prompt_id = a.prompt_id
    left join sets as s on s.run_id = a.run_id and s.set_id = a.set_id
    where a.run_id in ($a, $b)
),

paired as (
    select
        a.prompt_hash, a.label, a.text, a.condition, a.k, a.tau, a.seed, a.draw, a.held, a.number,
        a.p_refusal_token as p_a, b.p_refusal_token as p_b, b.p_refusal_token - a.p_refusal_token as difference,
        a.first_token as first_token_a, b.first_token as first_token_b, a.completion as answer_a, b.completion as answer_b
    from asked as a
    join asked as b
        on b.prompt_hash = a.prompt_hash and b.condition = a.condition and b.k is not distinct from a.k
        and b.tau is not distinct from a.tau and b.seed is not distinct from a.seed and b.draw is not distinct from a.draw
        and b.held = a.held and b.number = a.number
    where a.run_id = $a and b.run_id = $b
)

select label, condition, k, tau, seed, draw, p_a, p_b, difference, first_token_a, first_token_b, answer_a, answer_b, text
from paired
where
    not $differing or abs(difference) > $min_difference or first_token_a <> first_token_b or answer_a <> answer_b
order by abs(difference) desc, condition, k, tau, seed, draw, prompt_hash, held, number
limit $limit
