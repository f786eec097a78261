"""The refusal direction (R3): difference of means at every layer, and the choice of one layer on held-out prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor

import duckdb
import numpy as np

from saelake.analysis.engine.requests import DirectionEdit, Request
from saelake.analysis.search.answers import judged
from saelake.analysis.search.shown import not_shown
from saelake.analysis.stage import Stage, Work, direction_splits, single_shard
from saelake.analysis.study_context import StudyContext
from saelake.ingest.capture import last_residuals
from saelake.ingest.recipe.sections import Direction
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import DIRECTIONS

FILTERS = {"late": "drop_last_layers", "kl": "kl_max", "induced": "induce_min"}
"""What the column left_out calls a filter -> the field of [direction] that sets it."""


@dataclass(frozen=True)
class Scores:
    """How one layer's direction does on the selection prompts; the columns of `directions`."""

    n_prompts: int
    n_flipped: int
    p_refusal_token: float
    kl: float
    induced: float


def chosen_everywhere(context: StudyContext, con: duckdb.DuckDBPyConnection) -> DirectionEdit | None:
    """The study's one direction, projected out of every layer; None if no layer is chosen."""
    found = con.execute("select vector from directions where chosen").fetchall()
    if not found:
        return None
    return DirectionEdit(np.array(found[0][0], dtype=np.float32), tuple(range(context.subject.n_layers)))


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
    """Of the verdicts that apply, how many are refusals; 0 where none applies."""
    applying = [one for one in refused if one is not None]
    return float(np.mean(applying)) if applying else 0.0


def left_out(scores: Sequence[Scores], settings: Direction) -> list[str | None]:
    """Which of the recipe's filters leave each layer out, as the column left_out names them; None where none does."""
    n_open = round(len(scores) * (1 - settings.drop_last_layers))
    found = []
    for layer, one in enumerate(scores):
        filters = {"late": layer >= n_open, "kl": not one.kl <= settings.kl_max, "induced": one.induced < settings.induce_min}
        found.append(", ".join(name for name, is_out in filters.items() if is_out) or None)
    return found


def choose(scores: Sequence[Scores], admitted: Sequence[bool]) -> int | None:
    """The admitted layer that flips most; ties go to the lower mean probability of a refusal token, then the lower layer.

    None if no layer is admitted.
    """
    candidates = [layer for layer, ok in enumerate(admitted) if ok]
    return min(candidates, key=lambda layer: (-scores[layer].n_flipped, scores[layer].p_refusal_token, layer), default=None)


class NoDirection(UserError):
    """The study ends here: the recipe's filters leave out every layer. `names` and `rows` are the table that shows it."""

    def __init__(self, sentence: str, names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
        super().__init__(sentence)
        self.names, self.rows = names, rows


LAYERS = """
select layer, n_prompts, n_flipped, kl, induced, left_out
from directions
order by layer
"""


def require_chosen(con: duckdb.DuckDBPyConnection) -> None:
    """Raises NoDirection if no layer is chosen, with what would have to be changed for the one that flips most."""
    if con.execute("select 1 from directions where chosen").fetchall():
        return
    found = con.execute(LAYERS)
    names, rows = [column[0] for column in found.description], found.fetchall()
    *_, best = sorted(rows, key=lambda row: (bool(row[2]) and "late" not in str(row[5]), row[2], -round(row[3], 3), -row[0]))
    layer, n_prompts, n_flipped, kl, induced, out = best
    filters = str(out).split(", ")
    changes = {
        "late": f"direction.drop_last_layers = {max(0.0, floor(100 * (1 - (layer + 1) / len(rows))) / 100):g}",
        "kl": f"direction.kl_max = {ceil(100 * kl) / 100:g}",
        "induced": f"direction.induce_min = {floor(100 * induced) / 100:g}",
    }
    counts = [(FILTERS[name], sum(name in str(row[5]).split(", ") for row in rows)) for name in changes]
    why = ", ".join(f"{field} {n}" for field, n in counts if n)
    raise NoDirection(
        f"direction: no layer passes the recipe's filters, so the analysis ends here (layers left out, of {len(rows)}: {why}); "
        f"layer {layer}, which flips {n_flipped} of {n_prompts} prompts, is admitted with "
        f"{' and '.join(changes[name] for name in filters)}",
        names,
        rows,
    )


def _scores(context: StudyContext, vectors: np.ndarray, norms: np.ndarray) -> list[Scores]:
    split = context.recipe.direction.select_split
    everywhere = tuple(range(context.subject.n_layers))
    targets, controls = (context.study.prompts_of(split, role) for role in ("target", "control"))
    clean = judged(context, [Request(p) for p in targets])
    refused = [p for p, answer in zip(targets, clean, strict=True) if answer.verdict.refused]
    if not refused:
        raise not_shown(context.recipe, clean)
    if not controls:
        raise UserError(
            f"direction.select_split is {split!r}, but the study has no {context.recipe.labels.control} prompt in that split "
            f"to choose a layer on"
        )
    clean_log_p = context.engine.log_probabilities([Request(p) for p in controls])
    scores = []
    for layer, vector in enumerate(vectors):
        out = DirectionEdit(vector, everywhere)
        added = DirectionEdit(vector, (layer,), project_out=False, add=float(norms[layer]))
        ablated = judged(context, [Request(p, direction=out) for p in refused])
        steered = judged(context, [Request(p, direction=added) for p in controls])
        edited_log_p = context.engine.log_probabilities([Request(p, direction=out) for p in controls])
        kl = (clean_log_p.exp() * (clean_log_p - edited_log_p)).sum(-1).mean()
        scores.append(
            Scores(
                n_prompts=len(refused),
                n_flipped=sum(a.verdict.flipped is True for a in ablated),
                p_refusal_token=float(np.mean([a.p_refusal_token for a in ablated])),
                kl=float(kl),
                induced=share([a.verdict.refused for a in steered]),
            )
        )
    return scores


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, settings = work.context, work.context.recipe.direction
    differences = difference_of_means(context, settings.split)
    norms = np.linalg.norm(differences, axis=1)
    vectors = differences / norms[:, None]
    scores = _scores(context, vectors, norms)
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
    code_version=2,
)
