"""Sentences that must not be overlooked: what a study's own tables say against reading them as they stand."""

from collections.abc import Mapping

import duckdb

from saelake import queries
from saelake.analysis.judges.reasoning import Reasoning
from saelake.ingest.recipe import Recipe
from saelake.queries.output import printable

NEAR_ZERO = 0.1
"""Mean probability of a target token below which refusals do not begin with one."""
SHOWN = 3
"""First tokens that a sentence quotes."""


def target_notice(con: duckdb.DuckDBPyConnection, words: Mapping[str, str]) -> str | None:
    """That prompts are refused at baseline by the oracle while a target token is improbable there; None where it is not so.

    Args:
        words: what the behaviour is called, as `ingest.recipe.sections.Behaviour` dumps it.
    """
    if (judge := queries.oracle(con)) is None:
        return None
    found = queries.run(con, "first_tokens", judge=judge).filter("n_refused > 0")
    (n_refused,) = found.aggregate("coalesce(sum(n_refused), 0)::bigint").fetchall()[0]
    missed = found.filter(f"p_refused < {NEAR_ZERO}").aggregate("first_token, sum(n_refused)::bigint as n", "first_token")
    said = missed.order("n desc, first_token").fetchall()
    if not said:
        return None
    quoted = ", ".join(f'"{printable(token)}" ({n})' for token, n in said[:SHOWN])
    return (
        f"{sum(n for _, n in said)} of {n_refused} prompts that are {words['shown']} at baseline by {judge} begin with no target "
        f"token, but with {quoted}{', ...' if len(said) > SHOWN else ''}: P(target token) is near 0 there, and Algorithm 1 and "
        f"the choice of a direction go by it; name these first words as model.target_tokens, or others that show the behaviour"
    )


def reasoning_notice(recipe: Recipe) -> str | None:
    """That the template opens a block of reasoning, so that the first token is not the answer's; None where it does not."""
    if not Reasoning.of(recipe).is_open:
        return None
    return (
        "the chat template opens a block of reasoning: P(target token) is read at the first token of the reasoning, "
        "judges read what follows its end; switch it off with model.template_variables (enable_thinking = false, say), "
        "or choose another oracle than first_token and raise generation.max_new_tokens until answers get there"
    )
