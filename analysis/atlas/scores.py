"""Which methods would have named the causes: each one's ranking of features, and of pairs, beside what ablating them does.

A true cause is a feature without which P(target) falls by at least `atlas.beyond`; a true interaction is a pair whose joint
effect differs by at least as much from the sum of the two alone. Where effects are those on the log-odds of P(target), it differs
by at least `atlas.beyond_log_odds`: what adds up there and not in P is the softmax's curve. Pairs with a probability too near to
0 or 1 to have log-odds are left out there. Recall at k is the share of the true ones among the first k that a method names, of
the k at most that there are. Prompts without a true one count for nothing. A machine and the probe rank by their
weights, signed and by size, which are the same on every prompt, and by what these add to their logit on the prompt (learned.py).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import duckdb
import numpy as np
import torch
from scipy import stats
from scipy.special import logit

from saelake import queries
from saelake.analysis.atlas.learned import NOT_NAMED, Learned, OnPrompt
from saelake.analysis.engine.requests import codes_of
from saelake.analysis.interactions.comparisons import Prompts
from saelake.analysis.interactions.statistics import Families, tied_places
from saelake.analysis.search.alignments import residual_rows
from saelake.analysis.search.ranking import PASSES_OF_A_GRADIENT
from saelake.analysis.stage import Stage, Work, searched_split, single_shard
from saelake.ingest.recipe.atlas import Atlas
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import METHOD_SCORES

SURE = 1e-5
"""How near to 0 and 1 a probability has log-odds: nearer than that, they are mostly those of float32's rounding."""
Scale = Callable[[np.ndarray], np.ndarray]
"""From probabilities to what effects are measured in."""


class Score(NamedTuple):
    """What one method reaches on one prompt."""

    finds: str
    method: str
    measure: str
    k: int | None
    value: float


class _Active(NamedTuple):
    """The active features of one prompt, with what methods know of them."""

    sae: np.ndarray
    feature_id: np.ndarray
    p_clean: np.ndarray
    p_target: np.ndarray
    """Without each."""
    scores: Mapping[str, np.ndarray]
    """method -> how strongly it says that a feature is a cause."""
    machines: Mapping[str, OnPrompt]
    """model -> what a factorisation machine, or the probe, has learned of them."""

    def falls(self, scale: Scale) -> np.ndarray:
        """What P(target), on a scale, falls by without each."""
        return scale(self.p_clean) - scale(self.p_target)


def as_it_is(p: np.ndarray) -> np.ndarray:
    return p


def log_odds(p: np.ndarray) -> np.ndarray:
    """NaN for what is too near to 0 or 1: log-odds that were cut off there would not add up where those of the model do."""
    return np.asarray(logit(np.where((p >= SURE) & (p <= 1 - SURE), p, np.nan)))


SCALES: Mapping[str, Scale] = {"interactions": as_it_is, "interactions_log_odds": log_odds}
"""What is to be found -> what effects of pairs are measured in."""


def sizes_of_interactions(scale: Scale, p_clean: np.ndarray, p_a: np.ndarray, p_b: np.ndarray, p_both: np.ndarray) -> np.ndarray:
    """How much the joint effect of two features differs from the sum of the two; NaN where one of the four is none on the scale.

    Args:
        p_clean: (n,) P(target) of the unmodified model; p_a, p_b: without either feature of each pair; p_both: without both.
    """
    clean, a, b, both = map(scale, (p_clean, p_a, p_b, p_both))
    return np.asarray(np.abs((clean - both) - (clean - a) - (clean - b)))


def recall(true: np.ndarray, scores: np.ndarray, k: int) -> float:
    """The share of the true ones, of k at most, that the k highest scores name; of equal scores as many as chance would take.

    Args:
        true: (n,) bool, some of them true.
        scores: (n,), -inf for what is not named.
    """
    named = np.flatnonzero(scores > NOT_NAMED)
    if len(named) > k:
        places = _places(scores)
        bound = np.partition(places[named], -k)[-k]
        above, tied = places > bound, places == bound
        hits = true[above].sum() + true[tied].sum() * (k - above.sum()) / tied.sum()
    else:
        hits = true[named].sum()
    return float(hits / min(k, int(true.sum())))


def rank_correlation(effects: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's, what is not named being ranked last; 0 where either is the same everywhere."""
    a, b = tied_places(effects), _places(scores)
    if not a.any() or not b.any():
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def _places(scores: np.ndarray) -> np.ndarray:
    """(n,) which of the distinct scores each is, from what is not named upwards. Equal up to rounding is equal."""
    named = scores[scores > NOT_NAMED]
    # Divided by the largest: scores of methods have units of their own, and rounding is relative to these.
    return tied_places(np.where(scores > NOT_NAMED, scores / max(np.abs(named).max(initial=0.0), np.finfo(float).tiny), -2.0))


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    with work.sql() as con:
        found = con.execute("select distinct prompt_id from single_effects order by prompt_id").fetchnumpy()["prompt_id"].tolist()
        learned = Learned.of(work, con)
        by_prompt = {prompt_id: _of_prompt(work, con, learned, prompt_id) for prompt_id in found}
        rows = Rows.of(METHOD_SCORES, _summed(by_prompt, _spent(work, con), Prompts.of(con, ()), work.spec.seed))
    for name in missing:
        yield name, [rows]


def _of_prompt(work: Work, con: duckdb.DuckDBPyConnection, learned: Learned, prompt_id: int) -> list[Score]:
    active, settings = _active(work, con, learned, prompt_id), work.context.recipe.atlas
    falls = active.falls(as_it_is)
    found = _scored("causes", falls >= settings.beyond, falls, active.scores, settings.ks)
    pairs = queries.run(con, "atlas_pairs", prompt_id=prompt_id).fetchnumpy()
    if len(pairs["a"]):
        scores = _of_pairs(work, prompt_id, active, pairs["a"], pairs["b"])
        for finds in SCALES:
            found += _scored_pairs(finds, settings, active, pairs, scores)
    return found


def _scored_pairs(
    finds: str, settings: Atlas, active: _Active, pairs: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]
) -> list[Score]:
    """Of the pairs whose interaction can be measured.

    Args:
        pairs: columns of the query atlas_pairs.
        scores: method -> of each pair.
    """
    a, b, scale = pairs["a"], pairs["b"], SCALES[finds]
    p_clean, p_both, falls = _float64(pairs["p_clean"]), _float64(pairs["p_target"]), active.falls(scale)
    sizes = sizes_of_interactions(scale, p_clean, active.p_target[a], active.p_target[b], p_both)
    measured = np.isfinite(sizes)
    by_method = {**scores, "single_effects_product": np.abs(falls[a] * falls[b])}
    by_method = {method: by[measured] for method, by in by_method.items()}
    beyond = settings.beyond if scale is as_it_is else settings.beyond_log_odds
    return _scored(finds, sizes[measured] >= beyond, sizes[measured], by_method, settings.pair_ks)


def _float64(column: np.ndarray) -> np.ndarray:
    return np.asarray(column, dtype=np.float64)


def _scored(
    finds: str, true: np.ndarray, effects: np.ndarray, scores: Mapping[str, np.ndarray], ks: Sequence[int]
) -> list[Score]:
    if not true.any():
        return []
    found = [Score(finds, method, "recall", k, recall(true, by, k)) for method, by in scores.items() for k in ks]
    return found + [
        Score(finds, method, "rank_correlation", None, rank_correlation(effects, by)) for method, by in scores.items()
    ]


def _active(work: Work, con: duckdb.DuckDBPyConnection, learned: Learned, prompt_id: int) -> _Active:
    rows = queries.run(con, "atlas_rankings", prompt_id=prompt_id).fetchnumpy()
    methods = dict.fromkeys(rows["method"].tolist())
    scores = np.ma.filled(np.ma.asarray(rows["score"], dtype=np.float64), NOT_NAMED).reshape(len(methods), -1)
    n = scores.shape[1]  # every method ranks the same features, in one order
    sae, feature_id = work.context.sae_numbers(rows["sae_id"][:n]), rows["feature_id"][:n]
    machines = learned.on(prompt_id, codes_of(sae, feature_id))
    by_method = dict(zip(methods, scores, strict=True)) | {"random": _random(work, prompt_id, n)}
    by_method |= {f"{model}_contribution": machine.contributions() for model, machine in machines.items()}
    p_clean, p_target = _float64(rows["p_clean"][:n]), _float64(rows["p_target"][:n])
    return _Active(sae, feature_id, p_clean, p_target, by_method, machines)


def _of_pairs(work: Work, prompt_id: int, active: _Active, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """How strongly each method that sees no effect says that two features interact, for pairs of places among the active ones."""
    rows_nd = torch.nn.functional.normalize(_decoder_rows(work, active), dim=1)
    cosine = (rows_nd @ rows_nd.T).numpy()
    gradient = np.where(active.scores["gradient"] > NOT_NAMED, active.scores["gradient"], 0.0)
    found = {
        "decoder_cosine": np.abs(cosine[a, b]),
        "gradient_product": np.abs(gradient[a] * gradient[b]),
        "activation_product": active.scores["activation"][a] * active.scores["activation"][b],
        "random": _random(work, prompt_id, len(a)),
    }
    for model, machine in active.machines.items():
        if machine.has_pairs:
            found[model] = np.abs(machine.dots(a, b))
            found[f"{model}_contribution"] = np.abs(machine.pair_contributions(a, b))
    return found


def _random(work: Work, prompt_id: int, n: int) -> np.ndarray:
    """A ranking by chance, the same whenever it is drawn."""
    place = int(work.context.places[work.context.number_of[prompt_id]])
    return np.random.default_rng([work.spec.seed, place, n]).random(n)


def _decoder_rows(work: Work, active: _Active) -> torch.Tensor:
    """(n, d) of the active features, where they lie in the residual stream."""
    rows_nd = torch.empty(len(active.sae), work.context.subject.d_model)
    for number in np.unique(active.sae).tolist():
        mine = np.flatnonzero(active.sae == number)
        rows_nd[torch.from_numpy(mine)] = residual_rows(work.context, work.context.saes[number], active.feature_id[mine])
    return rows_nd


def _spent(work: Work, con: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], float]:
    """(what is to be found, method) -> passes a prompt beyond those of the study; what is not named spends none."""
    rows = con.execute(queries.step("search_passes")).fetchall()
    ((n_active,),) = con.execute("select count(*) / count(distinct prompt_id) from single_effects").fetchall()
    searched = {("causes", str(method)): float(n) for method, n in rows}
    steps = 1 + len(work.context.study.numbered_saes) * work.context.recipe.atlas.steps
    return searched | {
        ("causes", "gradient"): PASSES_OF_A_GRADIENT,
        ("causes", "integrated_gradients"): PASSES_OF_A_GRADIENT * steps,
        **{(finds, "gradient_product"): PASSES_OF_A_GRADIENT for finds in SCALES},
        **{(finds, "single_effects_product"): float(n_active or 0) for finds in SCALES},
    }


def _summed(
    by_prompt: Mapping[int, Sequence[Score]], spent: Mapping[tuple[str, str], float], prompts: Prompts, seed: int
) -> dict[str, list[object]]:
    """Columns of METHOD_SCORES: means over prompts, with intervals over families; a prompt without one is its own."""
    values: dict[tuple[str, str, str, int | None], dict[int, float]] = defaultdict(dict)
    for prompt_id, scores in by_prompt.items():
        for one in scores:
            values[one.finds, one.method, one.measure, one.k][prompt_id] = one.value
    having = {finds: {p for (one, *_), found in values.items() for p in found if one == finds} for finds, *_ in values}
    columns: dict[str, list[object]] = {name: [] for name in METHOD_SCORES.schema.names if name != "run_id"}
    for (finds, method, measure, k), named in values.items():
        of_prompt = dict.fromkeys(sorted(having[finds]), 0.0) | named  # a method that names nothing there finds nothing
        ids, reached = np.array(list(of_prompt)), np.array(list(of_prompt.values()))
        families = prompts.families(ids) or Families(np.arange(len(ids)))
        low, high = families.interval(reached, seed)
        row = (finds, method, measure, k, len(ids), float(reached.mean()), low, high, spent.get((finds, method), 0.0))
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
    return columns


STAGE = Stage(
    name="atlas_scores",
    parents=(
        "atlas",
        "atlas_joint",
        "atlas_attributions",
        "direction",
        "alignments",
        "fm",
        "probe",
        "algorithm1",
        "minimal",
        "prompts",
        "activations",
    ),
    splits=searched_split,
    sections=("atlas", "interactions", "candidates"),
    tables=("method_scores",),
    shards=single_shard,
    compute=_compute,
    code_version=4,
)
