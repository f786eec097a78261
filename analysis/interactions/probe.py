"""The linear probe (R12): logistic regression on what the factorisation machine sees, fitted until nothing moves any more.

    mean of log(1 + exp(-s (x w + b))) + penalty / 2 |w|^2,    s = 1 for harmful, -1 for benign

It is convex, so there is one answer, which L-BFGS finds: unlike an optimiser's epochs it depends on no order and no step. Of
several penalties the one counts that does best on validation; the weaker ones start from the stronger ones' answers.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from saelake.analysis.interactions.examples import examples_of, identity
from saelake.analysis.interactions.factorisation import model_rows, weight_columns
from saelake.analysis.interactions.factorisation_machine import Epoch, Machine, Trained, score
from saelake.analysis.stage import Stage, Work, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import PROBE_WEIGHTS

MODEL = "probe"
CONVERGED = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 1e-14, "gtol": 1e-7}


def fit(x: csr_matrix, y: np.ndarray, penalty: float, start: np.ndarray) -> np.ndarray:
    """Weights and, last, the constant (m + 1,) float64, from a start; y is 0 or 1."""
    rows, sign = x.astype(np.float64), np.where(y > 0.5, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, margin = parameters[:-1], sign * (rows @ parameters[:-1] + parameters[-1])
        slope = -sign * expit(-margin) / len(sign)
        value = np.logaddexp(0, -margin).mean() + penalty / 2 * float(weights @ weights)
        return float(value), np.append(rows.T @ slope + penalty * weights, slope.sum())

    found: np.ndarray = minimize(loss, start, jac=True, method="L-BFGS-B", options=CONVERGED).x
    return found


def converged(x: csr_matrix, y: np.ndarray, places: Mapping[str, np.ndarray], penalties: Sequence[float]) -> Trained:
    """The probe of the penalty that does best on validation; an epoch of what is returned is a penalty, the strongest first."""
    train = places["train"]
    parameters = np.zeros(x.shape[1] + 1)
    epochs: list[Epoch] = []
    found: list[tuple[tuple[float, float], int, Machine]] = []
    for number, penalty in enumerate(sorted(penalties, reverse=True), 1):
        parameters = fit(x[train], y[train], penalty, parameters)
        rows = torch.from_numpy(parameters[:-1].astype(np.float32)[:, None])
        machine = Machine(float(np.float32(parameters[-1])), rows)
        logits = machine.logits(x)
        epochs.append(Epoch(*(score(logits[places[split]], y[places[split]]) for split in ("train", "val", "test"))))
        val = epochs[-1].val
        found.append(((val.accuracy, -val.loss) if len(places["val"]) else (0.0, 0.0), -number, machine))
    _, number, machine = max(found, key=lambda one: one[:2])
    return Trained(machine, -number, epochs)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    examples = examples_of(work)
    trained = converged(examples.x, examples.y, examples.places, work.context.recipe.probe.penalties)
    weights = Rows.of(PROBE_WEIGHTS, weight_columns(examples, trained.machine))
    for name in missing:
        yield name, [*model_rows(MODEL, 0, examples, trained), weights]


STAGE = Stage(
    name="probe",
    parents=("direction", "prompts", "activations"),
    sets=lambda recipe: recipe.interactions.sets,
    sections=("interactions", "probe"),
    tables=("models", "fm_metrics", "probe_weights", "predictions"),
    shards=single_shard,
    compute=_compute,
    identity=identity,
    code_version=2,
)
