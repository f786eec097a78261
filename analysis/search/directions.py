"""The refusal direction (R3): difference of means at every layer, and the choice of one layer on held-out prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, floor

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.engine.requests import DirectionEdit, Request
from saelake.analysis.search.answers import judged
from saelake.analysis.search.shown import not_shown
from saelake.analysis.stage import Stage, Work, direction_splits, single_shard
from saelake.analysis.study_context import StudyContext
from saelake.ingest.capture import last_residuals
from saelake.ingest.recipe.search import Direction
from saelake.ingest.sites import Site
from saelake.queries.reasons import FILTERS
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import DIRECTIONS

OUTDONE = "outdone"
"""What left_out says of a layer that stands behind another one, by the first token already or by its whole answers: the rest was
not asked."""


@dataclass(frozen=True)
class Scores:
    """How one layer's direction does on the selection prompts; the columns of `directions`, None where it was not asked."""

    n_prompts: int
    n_flipped: int | None = None
    p_refusal_token: float | None = None
    kl: float | None = None
    induced: float | None = None


def stored_direction(con: duckdb.DuckDBPyConnection, layer: int | None = None) -> tuple[int, np.ndarray] | None:
    """The study's one direction, or a layer's: its layer and unit vector (d,) float32; None where none is chosen or stored."""
    found = con.execute(queries.step("direction"), {"layer": layer}).fetchall()
    return (found[0][0], np.array(found[0][1], dtype=np.float32)) if found else None


def chosen_everywhere(context: StudyContext, con: duckdb.DuckDBPyConnection) -> DirectionEdit | None:
    """The study's one direction, projected out of every layer; None if no layer is chosen."""
    found = stored_direction(con)
    return None if found is None else DirectionEdit(found[1], tuple(map(Site, range(context.subject.n_layers))))


def difference_of_means(context: StudyContext, split: str) -> np.ndarray:
    """(l, d) float32: mean resid_post at the last token, target minus control, for every block of the subject."""
    layers = range(context.subject.n_layers)
    means = {}
    for role in ("target", "control"):
        prompts = context.study.prompts_of(split, role)
        if not prompts:
            label = context.recipe.labels.of(role)
            raise UserError(f"direction.split is {split!r}, but the study has no {label} prompt in that split")
        token_ids = [context.token_ids[p] for p in prompts]
        last_bld = last_residuals(context.subject, token_ids, layers, context.recipe.capture.batch_tokens)
        means[role] = last_bld.double().mean(0).cpu().numpy()
    return (means["target"] - means["control"]).astype(np.float32)


def share(refused: Sequence[bool | None]) -> float:
    """Of the verdicts that apply, the share that are refusals; 0 where none applies."""
    applying = [one for one in refused if one is not None]
    return float(np.mean(applying)) if applying else 0.0


def left_out(scores: Sequence[Scores], settings: Direction) -> list[str | None]:
    """Which of the recipe's filters leave each layer out, as the column left_out names them; None where none does."""
    n_open = _n_open(len(scores), settings)
    found = []
    for layer, one in enumerate(scores):
        filters = {
            "late": layer >= n_open,
            "kl": one.kl is not None and not one.kl <= settings.kl_max,
            "induced": one.induced is not None and one.induced < settings.induce_min,
        }
        out = [name for name, is_out in filters.items() if is_out]
        found.append(", ".join(out or ([OUTDONE] if one.induced is None else [])) or None)
    return found


def _n_open(n_layers: int, settings: Direction) -> int:
    """Layers that may be chosen: the last ones may not."""
    return round(n_layers * (1 - settings.drop_last_layers))


def choose(scores: Sequence[Scores], admitted: Sequence[bool]) -> int | None:
    """The admitted layer that flips most; ties go to the lower mean probability of a refusal token, then the lower layer.

    None if no layer is admitted.
    """
    return min((layer for layer, ok in enumerate(admitted) if ok), key=lambda layer: _standing(scores, layer), default=None)


def _standing(scores: Sequence[Scores], layer: int) -> tuple[int, float, int]:
    """By what layers that were asked for whole answers are ordered, the best first."""
    n_flipped, p = scores[layer].n_flipped, scores[layer].p_refusal_token
    assert n_flipped is not None, f"layer {layer} has no whole answers"
    assert p is not None, f"layer {layer} has no first tokens"
    return -n_flipped, p, layer


class NoDirection(UserError):
    """The study ends here: the recipe's filters leave out every layer. `names` and `rows` are the table that shows it."""

    def __init__(self, sentence: str, names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
        super().__init__(sentence)
        self.names, self.rows = names, rows


def require_chosen(con: duckdb.DuckDBPyConnection) -> None:
    """Raises NoDirection if no layer is chosen, with what would have to be changed for the one that flips most."""
    if stored_direction(con) is not None:
        return
    found = con.execute(queries.step("direction_filters"))
    names, rows = [column[0] for column in found.description], found.fetchall()
    # Here every layer was measured in full, whatever direction.selection says.
    *_, best = sorted(rows, key=lambda row: (bool(row[2]) and "late" not in str(row[5]), row[2], -round(row[3], 3), -row[0]))
    layer, n_prompts, n_flipped, kl, induced, out = best
    filters = str(out).split(", ")
    changes = {
        "late": f"direction.drop_last_layers = {max(0.0, floor(100 * (1 - (layer + 1) / len(rows))) / 100):g}",
        "kl": f"direction.kl_max = {ceil(100 * kl) / 100:g}",
        "induced": f"direction.induce_min = {floor(100 * induced) / 100:g}",
    }
    counts = [
        (FILTERS[name].removeprefix("direction."), sum(name in str(row[5]).split(", ") for row in rows)) for name in changes
    ]
    why = ", ".join(f"{field} {n}" for field, n in counts if n)
    raise NoDirection(
        f"direction: no layer passes the recipe's filters, so the analysis ends here (layers left out, of {len(rows)}: {why}); "
        f"layer {layer}, which flips {n_flipped} of {n_prompts} prompts, is admitted with "
        f"{' and '.join(changes[name] for name in filters)}",
        names,
        rows,
    )


class Selection:
    """What the layers' directions do to the selection prompts, each asked for when it is wanted and never twice."""

    def __init__(self, context: StudyContext, vectors: np.ndarray, norms: np.ndarray) -> None:
        split = context.recipe.direction.select_split
        targets, controls = (context.study.prompts_of(split, role) for role in ("target", "control"))
        clean = judged(context, [Request(p) for p in targets])
        self._refused = [p for p, answer in zip(targets, clean, strict=True) if answer.verdict.refused]
        if not self._refused:
            raise not_shown(context.recipe, clean)
        if not controls:
            raise UserError(
                f"direction.select_split is {split!r}, but the study has no {context.recipe.labels.control} prompt in that split "
                f"to choose a layer on"
            )
        self._context, self._controls = context, controls
        sites = tuple(map(Site, range(context.subject.n_layers)))
        self._out = [DirectionEdit(vector, sites) for vector in vectors]
        self._added = [
            DirectionEdit(vector, (site,), project_out=False, add=float(norm))
            for site, vector, norm in zip(sites, vectors, norms, strict=True)
        ]
        self._clean_log_p = context.engine.log_probabilities([Request(p) for p in controls])
        self.whole = cache(self._whole)
        self.kl = cache(self._kl)
        self.induced = cache(self._induced)

    @property
    def n_layers(self) -> int:
        return len(self._out)

    @property
    def nothing(self) -> Scores:
        """Of a layer of which nothing was asked."""
        return Scores(len(self._refused))

    def first_tokens(self, layers: Sequence[int]) -> list[tuple[int, float]]:
        """For each layer, with its direction projected out: answers that begin with no target token, and mean P(target)."""
        requests = [Request(p, direction=self._out[layer]) for layer in layers for p in self._refused]
        said = self._context.engine.next_token(requests)
        passes = ~np.isin(said.token_id, self._context.subject.target_token_ids).reshape(len(layers), -1)
        p_target = said.p_target.reshape(len(layers), -1)
        return [(int(n), float(p)) for n, p in zip(passes.sum(1), p_target.mean(1), strict=True)]

    def _whole(self, layer: int) -> tuple[int, float]:
        """Answers that flip, by the oracle, and mean P(target)."""
        ablated = judged(self._context, [Request(p, direction=self._out[layer]) for p in self._refused])
        return sum(a.verdict.flipped is True for a in ablated), float(np.mean([a.p_refusal_token for a in ablated]))

    def _kl(self, layer: int) -> float:
        edited_log_p = self._context.engine.log_probabilities([Request(p, direction=self._out[layer]) for p in self._controls])
        return float((self._clean_log_p.exp() * (self._clean_log_p - edited_log_p)).sum(-1).mean())

    def _induced(self, layer: int) -> float:
        steered = judged(self._context, [Request(p, direction=self._added[layer]) for p in self._controls])
        return share([a.verdict.refused for a in steered])

    def in_full(self, layer: int) -> Scores:
        """Everything about one layer."""
        return replace(self.answered(layer), kl=self.kl(layer), induced=self.induced(layer))

    def answered(self, layer: int) -> Scores:
        """A layer's whole answers."""
        n_flipped, p_target = self.whole(layer)
        return replace(self.nothing, n_flipped=n_flipped, p_refusal_token=p_target)


def best_scores(asked: Selection, settings: Direction) -> list[Scores]:
    """The layers' scores as far as they decide which one is chosen; all of them where none can be.

    First tokens of all layers that may be chosen come first: an answer that begins with a target token seldom flips. From the
    layer that passes most by them on, each is asked for what may leave it out, the cheapest first, until by first tokens no other
    can be better.
    """
    layers = range(_n_open(asked.n_layers, settings))
    first = dict(zip(layers, asked.first_tokens(layers), strict=True)) if layers else {}
    found = [asked.nothing for _ in range(asked.n_layers)]
    for layer, (_, p_target) in first.items():
        found[layer] = replace(found[layer], p_refusal_token=p_target)
    best: tuple[int, float, int] | None = None
    for layer in sorted(layers, key=lambda layer: (-first[layer][0], first[layer][1], layer)):
        n_passing, p_target = first[layer]
        if best is not None and best < (-n_passing, p_target, layer):
            break
        found[layer] = replace(found[layer], kl=asked.kl(layer))
        if not asked.kl(layer) <= settings.kl_max:
            continue
        found[layer] = replace(asked.answered(layer), kl=asked.kl(layer))
        if best is not None and best < _standing(found, layer):
            continue
        found[layer] = asked.in_full(layer)
        if asked.induced(layer) >= settings.induce_min:
            best = _standing(found, layer)
    return [asked.in_full(layer) for layer in range(asked.n_layers)] if best is None else found


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, settings = work.context, work.context.recipe.direction
    differences = difference_of_means(context, settings.split)
    norms = np.linalg.norm(differences, axis=1)
    vectors = differences / norms[:, None]
    asked = Selection(context, vectors, norms)
    is_full = settings.selection == "all"
    scores = [asked.in_full(layer) for layer in range(len(vectors))] if is_full else best_scores(asked, settings)
    out = left_out(scores, settings)
    admitted = [one is None for one in out]
    chosen = choose(scores, admitted)
    columns = {
        "layer": range(len(scores)),
        "vector": list(vectors),
        "norm": norms,
        "n_prompts": [s.n_prompts for s in scores],
        "n_flipped": [s.n_flipped for s in scores],
        "p_refusal_token": [s.p_refusal_token for s in scores],
        "kl": [s.kl for s in scores],
        "induced": [s.induced for s in scores],
        "admitted": admitted,
        "left_out": out,
        "chosen": [layer == chosen for layer in range(len(scores))],
    }
    for name in missing:
        yield name, [Rows.of(DIRECTIONS, columns)]


STAGE = Stage(
    name="direction",
    parents=("prompts",),
    splits=direction_splits,
    sections=("direction", "generation", "verdicts"),
    tables=("directions",),
    shards=single_shard,
    compute=_compute,
    code_version=3,
)
