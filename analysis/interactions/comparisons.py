"""Every rate of the study with an interval, every comparison with a test, every search with its stability (R21), as a table.

What is compared is what the stages say: what is found against its random controls, and one method against another. Conditions
that a study does not have are passed over.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.interactions.stage3 import JOINED
from saelake.analysis.interactions.statistics import (
    Families,
    Test,
    bootstrap_mean,
    holm,
    mcnemar,
    paired_interval,
    paired_test,
    wilcoxon,
    wilson,
)
from saelake.analysis.stage import Condition, Stage, Work, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import COMPARISONS


@dataclass(frozen=True)
class Prompts:
    """What prompts share with each other."""

    family: dict[int, int] | None
    """prompt_id -> number of its family; None if every prompt is alone."""
    fitted: frozenset[int]
    """Those whose text stands in a split that a direction was made from or chosen on, by prompt_hash."""

    @classmethod
    def of(cls, con: duckdb.DuckDBPyConnection, fitting: Sequence[str]) -> "Prompts":
        """Of the study's prompts; `fitting` are the splits of [direction]."""
        rows = con.execute("select prompt_id, prompt_hash, split, family from prompts order by prompt_id").fetchall()
        used = {prompt_hash for _, prompt_hash, split, _ in rows if split in fitting}
        number: dict[object, int] = {}
        family = {one: number.setdefault((one,) if name is None else name, len(number)) for one, _, _, name in rows}
        is_alone = len(number) == len(rows)
        return cls(None if is_alone else family, frozenset(one for one, prompt_hash, *_ in rows if prompt_hash in used))

    def families(self, prompt_ids: np.ndarray) -> Families | None:
        """The families of some prompts."""
        return None if self.family is None else Families(np.array([self.family[one] for one in prompt_ids.tolist()]))


class Setting(NamedTuple):
    """One intervention on the prompts of one label."""

    condition: str
    k: int | None
    tau: float | None
    label: str


@dataclass(frozen=True)
class Answers:
    """What happens to the prompts of a setting; arrays (n,) in one order of prompts a label."""

    prompt_ids: np.ndarray
    flipped: np.ndarray
    """Share of the draws that flip."""
    p_refusal_token: np.ndarray
    """NaN where there is no answer."""


@dataclass(frozen=True)
class Row:
    """One row of `comparisons`."""

    kind: str
    measure: str
    label: str
    a: str
    n: int
    estimate: float
    low: float | None
    high: float | None
    test: str
    b: str = ""
    k: int | None = None
    tau: float | None = None
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    effect_measure: str = ""
    n_families: int | None = None
    low_families: float | None = None
    high_families: float | None = None
    p_families: float | None = None
    p_families_holm: float | None = None


def answers_of(con: duckdb.DuckDBPyConnection, judge: str) -> dict[Setting, Answers]:
    """Setting -> answers, from the question per_prompt."""
    rows: dict[Setting, list[tuple[int, float, float]]] = defaultdict(list)
    for condition, k, tau, label, *answer in queries.run(con, "per_prompt", judge=judge).fetchall():
        rows[Setting(condition, k, tau, label)].append((answer[0], answer[1], np.nan if answer[2] is None else answer[2]))
    found = {}
    for setting, answered in rows.items():
        ids, flips, p_target = zip(*answered, strict=True)
        found[setting] = Answers(np.array(ids), np.array(flips, dtype=np.float64), np.array(p_target, dtype=np.float64))
    return found


def with_nothing_new(
    con: duckdb.DuckDBPyConnection, answers: dict[Setting, Answers], judge: str, method: str, target: str
) -> tuple[dict[Setting, Answers], list[tuple[str, str]]]:
    """Stage 3's sets and what they are without new features: the critical features that fire, of the first set of a prompt.

    The conditions themselves are of every start of a search, and of one tau each. Returns answers and what is to be compared.
    """
    joined = {one: found for one, found in answers.items() if (one.condition, one.label) == (JOINED.method, target)}
    rows = con.execute(queries.step("active_parts"), {"judge": judge, "method": method}).fetchall()
    if not joined or not rows:
        return {}, []
    ids = next(iter(joined.values())).prompt_ids
    known = {prompt_id: (float(flipped), p) for prompt_id, flipped, p in rows}
    flips, p_target = zip(*(known.get(prompt_id, (0.0, np.nan)) for prompt_id in ids.tolist()), strict=True)
    name = f"{method}_active"
    return joined | {Setting(name, None, None, target): Answers(ids, np.array(flips), np.array(p_target))}, [
        (JOINED.method, name)
    ]


def rates(answers: dict[Setting, Answers], prompts: Prompts, target: str) -> Iterator[Row]:
    """The share of prompts that flip, of every setting; of the target label also that of those that fitted no direction."""
    for (condition, k, tau, label), found in answers.items():
        yield _rate("flipped", label, condition, found.flipped, k, tau, prompts.families(found.prompt_ids))
        held_out = ~np.isin(found.prompt_ids, list(prompts.fitted))
        if label == target and held_out.any() and not held_out.all():
            families = prompts.families(found.prompt_ids[held_out])
            yield _rate("flipped_held_out", label, condition, found.flipped[held_out], k, tau, families)


def _rate(
    measure: str,
    label: str,
    a: str,
    shares: np.ndarray,
    k: int | None = None,
    tau: float | None = None,
    families: Families | None = None,
) -> Row:
    interval = wilson(float(shares.sum()), len(shares))
    row = Row("rate", measure, label, a, len(shares), float(shares.mean()), *interval, "wilson", k=k, tau=tau)
    if families is None:
        return row
    low, high = families.rate(shares)
    return replace(row, n_families=len(families), low_families=low, high_families=high)


def named(con: duckdb.DuckDBPyConnection, compared: Sequence[tuple[Condition, Condition]]) -> list[tuple[str, str]]:
    """The names of pairs of conditions, of which the study has both."""
    known = con.execute("select distinct method, part, control, condition from ablations").fetchall()
    names = {Condition(*one): name for *one, name in known}
    return [(names[a], names[b]) for a, b in compared if a in names and b in names]


def comparisons(
    answers: dict[Setting, Answers], compared: Sequence[tuple[str, str]], prompts: Prompts, target: str, seed: int
) -> Iterator[Row]:
    """Flips and refusal probabilities of pairs of settings, on the target prompts of both.

    Args:
        compared: names of conditions: a's settings go each against b's with the same K and tau, or b's only one.
    """
    for a, b in compared:
        for one, mine in answers.items():
            other = _partner(one, b, answers) if (one.condition, one.label) == (a, target) else None
            if other is None:
                continue
            theirs = answers[other]
            assert np.array_equal(mine.prompt_ids, theirs.prompt_ids), f"{one} and {other} are about different prompts"
            interval = paired_interval(mine.flipped, theirs.flipped)
            test = paired_test(mine.flipped, theirs.flipped, seed)
            estimate = float(mine.flipped.mean() - theirs.flipped.mean())
            row = _compared("flipped", one, b, len(mine.flipped), estimate, interval, test)
            families = prompts.families(mine.prompt_ids)
            if families is not None:
                row = _by_family(
                    row, families, families.paired(mine.flipped, theirs.flipped, seed), mine.flipped - theirs.flipped
                )
            yield row
            both = ~np.isnan(mine.p_refusal_token) & ~np.isnan(theirs.p_refusal_token)
            if both.any():
                p_a, p_b = mine.p_refusal_token[both], theirs.p_refusal_token[both]
                interval = bootstrap_mean(p_a - p_b, seed)
                row = _compared("p_refusal_token", one, b, len(p_a), float((p_a - p_b).mean()), interval, wilcoxon(p_a, p_b))
                families = prompts.families(mine.prompt_ids[both])
                yield row if families is None else _by_family(row, families, families.interval(p_a - p_b, seed), p_a - p_b)


def _partner(one: Setting, condition: str, answers: dict[Setting, Answers]) -> Setting | None:
    same = (one._replace(condition=condition), one._replace(condition=condition, k=None, tau=None))
    return next((other for other in same if other in answers), None)


def _compared(measure: str, one: Setting, b: str, n: int, estimate: float, interval: tuple[float, float], test: Test) -> Row:
    return Row(
        "comparison", measure, one.label, one.condition, n, estimate, *interval, test.name, b, one.k, one.tau,
        p=test.p, effect=test.effect, effect_measure=test.effect_measure,
    )  # fmt: skip


def _by_family(row: Row, families: Families, interval: tuple[float, float], differences: np.ndarray) -> Row:
    """The row with what its difference is over families."""
    low, high = interval
    return replace(row, n_families=len(families), low_families=low, high_families=high, p_families=families.p(differences))


def models(con: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    """Accuracy on the test prompts, and every factorisation machine against the probe, where both are tested on the same ones.

    A machine that was trained without the ablated split has test prompts of its own.
    """
    correct: dict[str, dict[int, bool]] = defaultdict(dict)
    tested = "select model, prompt_id, correct from predictions where split = 'test' order by model, prompt_id"
    for model, prompt_id, is_correct in con.execute(tested).fetchall():
        correct[model][prompt_id] = is_correct
    for model, right in correct.items():
        yield _rate("correct", "all", model, np.array(list(right.values()), dtype=np.float64))
    for model, right in correct.items():
        if model != "probe" and right.keys() == correct.get("probe", {}).keys():
            a, b = (np.array([one[prompt_id] for prompt_id in right]) for one in (right, correct["probe"]))
            estimate = float(a.mean() - b.mean())
            interval = paired_interval(a.astype(float), b.astype(float))
            yield _compared("correct", Setting(model, None, None, "all"), "probe", len(a), estimate, interval, mcnemar(a, b))


def stability(con: duckdb.DuckDBPyConnection, target: str, seed: int) -> Iterator[Row]:
    """Jaccard indices over starts or seeds (mean over prompts) and over halves of the prompts."""
    found: dict[tuple[str, int | None, float | None, str], list[float]] = defaultdict(list)
    for condition, k, tau, over, _, index in queries.run(con, "set_overlap").fetchall():
        found[condition, k, tau, over].append(index)
    for (condition, k, tau, over), indices in found.items():
        values = np.array(indices)
        low, high = bootstrap_mean(values, seed) if over == "starts" else (None, None)
        test = "bootstrap" if over == "starts" else ""
        yield Row("stability", "jaccard", target, condition, len(values), float(values.mean()), low, high, test, over, k, tau)


def corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with p_holm and p_families_holm, over all comparisons of the same measure."""
    found = list(rows)
    for measure in {row.measure for row in rows}:
        for name in ("p", "p_families"):
            p_values = {i: p for i, row in enumerate(rows) if row.measure == measure and (p := getattr(row, name)) is not None}
            for i, p in zip(p_values, holm(np.array(list(p_values.values()), dtype=np.float64)).tolist(), strict=True):
                found[i] = replace(found[i], **{f"{name}_holm": p})
    return found


def _compute(
    compared: Sequence[tuple[Condition, Condition]], work: Work, missing: Sequence[str]
) -> Iterator[tuple[str, list[Rows]]]:
    seed = work.spec.seed
    with work.sql() as con:
        recipe = work.context.recipe
        settings, judge = recipe.direction, recipe.verdicts.oracle
        answers = answers_of(con, judge)
        prompts = Prompts.of(con, (settings.split, settings.select_split))
        target = recipe.labels.target
        tested = [
            *comparisons(answers, named(con, compared), prompts, target, seed),
            *comparisons(*with_nothing_new(con, answers, judge, recipe.stage3.critical, target), prompts, target, seed),
        ]
        rows = corrected([*rates(answers, prompts, target), *tested, *models(con), *stability(con, target, seed)])
    names = list(Row.__dataclass_fields__)
    for name in missing:
        yield name, [Rows.of(COMPARISONS, {column: [getattr(row, column) for row in rows] for column in names})]


def stage(answered_by: Sequence[Stage]) -> Stage:
    """The stage that sums up the answers of some stages, as the oracle reads them, and tests what they say is to be compared."""
    compared = tuple(pair for one in answered_by for pair in one.compared)
    return Stage(
        name="statistics",
        parents=(*dict.fromkeys((*(one.name for one in answered_by), "fm", "probe")), "prompts"),
        sections=("verdicts",),
        tables=("comparisons",),
        shards=single_shard,
        compute=partial(_compute, compared),
        code_version=5,
    )
