"""What found sets are compared with: as many random features that fire on the prompt (R15), the features that fire on many
tokens (R17, O'Brien et al.), and the first candidates clamped to positive values.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.engine.requests import Request
from saelake.analysis.search import minimal
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.search.candidates import CHOSEN, OWN, ks, pool, shards_of_split
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.warehouse.runs import Rows

TOP_K = Condition("top_k", control="random")
"""So many of each SAE as in Stage 1, whichever direction ranks there."""
FOUND = {
    "minimal": Condition("minimal", control="random"),
    "algorithm1": Condition("algorithm1", control="random"),
    "common": Condition("algorithm1", "common", "random"),
}
"""method -> as many as its sets have"""
FIRING = Condition("firing_on_tokens")
Draws = Mapping[str, np.ndarray]
"""Columns of features by prompt_id: of the random ones draw, layer, sae_id, feature_id and rank."""


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    shards = shards_of_split(work.context.study, "controls")
    with work.sql("prompts", "activations", "alignments", "candidates", "minimal", "algorithm1") as con:
        often = _often(work, con)
        for name in missing:
            drawn = _drawn(work, con, shards[name])
            asked = [
                *_as_many_as_top_k(work, drawn),
                *_as_many_as_found(work, con, drawn),
                *_firing(work, often, shards[name]),
                *_clamped(work, con, shards[name]),
            ]
            yield name, ablation_rows(work.context, work.spec.stage, asked)


def _drawn(work: Work, con: duckdb.DuckDBPyConnection, prompts: Sequence[int]) -> dict[int, Draws]:
    """Shuffled features by prompt: they fire on it, and are neither candidates up to the cap nor in its own minimal sets."""
    settings = work.context.recipe.candidates
    found = queries.run(
        con,
        "random_active",
        prompts=[int(work.context.prompt_ids[p]) for p in prompts],
        pool=settings.cap,
        exclude_layers=list(settings.exclude_layers),
        draws=work.context.recipe.controls.random_draws,
        seed=work.spec.seed,
    ).fetchnumpy()
    return {p: _of_prompt(found, int(work.context.prompt_ids[p])) for p in prompts}


def _of_prompt(rows: Draws, prompt_id: int) -> Draws:
    mine = rows["prompt_id"] == prompt_id
    return {name: column[mine] for name, column in rows.items()}


def _as_many_as_top_k(work: Work, drawn: Mapping[int, Draws]) -> Iterator[Ablation]:
    """K of each SAE, for every K of Stage 1; all that the prompt has, where it has fewer."""
    for (prompt, rows), draw in product(drawn.items(), range(work.context.recipe.controls.random_draws)):
        for k in ks(work.context.recipe.candidates):
            chosen = (rows["draw"] == draw) & (rows["rank"] <= k)
            features = work.context.feature_set(rows, chosen)
            yield Ablation(Request(prompt, features), TOP_K, k=k, draw=draw, seed=work.spec.seed)


def _as_many_as_found(work: Work, con: duckdb.DuckDBPyConnection, drawn: Mapping[int, Draws]) -> Iterator[Ablation]:
    """As many of each SAE as the sets have that Stage 2 found for the prompt; on control prompts, the minimal one they take."""
    wanted: dict[tuple[int, str, float | None], dict[str, int]] = {}
    for method, tau, prompt_id, sae_id, n in con.execute(
        queries.step("set_sizes"), {"judge": work.context.recipe.verdicts.oracle}
    ).fetchall():
        wanted.setdefault((work.context.number_of[prompt_id], method, tau), {})[sae_id] = n
    for (prompt, method, tau), sizes in wanted.items():
        if prompt not in drawn:
            continue
        rows = drawn[prompt]
        n_wanted = np.array([sizes.get(sae_id, 0) for sae_id in rows["sae_id"].tolist()])
        for draw in range(work.context.recipe.controls.random_draws):
            chosen = (rows["draw"] == draw) & (rows["rank"] <= n_wanted)
            features = work.context.feature_set(rows, chosen)
            yield Ablation(Request(prompt, features), FOUND[method], tau=tau, draw=draw, seed=work.spec.seed)


def _often(work: Work, con: duckdb.DuckDBPyConnection) -> Draws:
    """Features of the searched SAEs by prompt, and on how many tokens they fire, BOS left out: one scan for all shards."""
    ks, excluded = work.context.recipe.controls.firing_on_tokens, work.context.recipe.candidates.exclude_layers
    return queries.run(con, "firing_on_tokens", k=min(ks), exclude_layers=list(excluded)).fetchnumpy() if ks else {}


def _firing(work: Work, often: Draws, prompts: Sequence[int]) -> Iterator[Ablation]:
    """The features that fire on at least k tokens of the prompt."""
    for prompt in prompts if often else ():
        mine = _of_prompt(often, int(work.context.prompt_ids[prompt]))
        for k in work.context.recipe.controls.firing_on_tokens:
            features = work.context.feature_set(mine, mine["n_tokens"] >= k)
            yield Ablation(Request(prompt, features), FIRING, k=k)


def _clamped(work: Work, con: duckdb.DuckDBPyConnection, prompts: Sequence[int]) -> Iterator[Ablation]:
    """The first candidate of every SAE held at a positive value at every position: do control prompts become refused?"""
    values = work.context.recipe.controls.clamp_values
    for direction in work.context.recipe.candidates.directions if values else ():
        found = pool(con, work.context.recipe.candidates, direction)
        first = found["rank"] == 1
        for draw, value in enumerate(values):
            features = work.context.feature_set(found, first, value)
            for prompt in prompts:
                if work.context.study.role(prompt) == "control":
                    yield Ablation(Request(prompt, features), Condition("clamp", direction), k=1, draw=draw)


STAGE = Stage(
    name="controls",
    parents=("candidates", "minimal", "algorithm1", "alignments", "prompts", "activations"),
    splits=searched_split,
    sections=("candidates", "controls", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts"),
    shards=lambda study: list(shards_of_split(study, "controls")),
    compute=_compute,
    code_version=4,
    conditions=("random", "firing_on_tokens", "clamp"),
    compared=(
        (OWN, TOP_K),
        (CHOSEN, TOP_K),
        (minimal.FOUND, FOUND["minimal"]),
        (Condition("algorithm1", "common"), FOUND["common"]),
    ),
)
