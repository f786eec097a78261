"""The linear probe (R12): logistic regression on what the factorisation machine sees, trained the same way."""

from collections.abc import Iterator, Sequence

from saelake.analysis.interactions.examples import examples_of, identity
from saelake.analysis.interactions.factorisation import feature_columns, model_rows, settings_of
from saelake.analysis.interactions.machine import train
from saelake.analysis.stage import Stage, Work, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import PROBE_WEIGHTS

MODEL = "probe"


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    examples = examples_of(work)
    settings = settings_of(work.bench.recipe.probe, 0, work.spec.seed)
    trained = train(examples.x, examples.y, examples.places, settings)
    weights = Rows.of(PROBE_WEIGHTS, feature_columns(examples, trained.machine))
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
)
