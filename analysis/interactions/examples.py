"""What the factorisation machine and the probe learn from: sparse, scaled rows of feature values, with labels and splits (R9)."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
from scipy.sparse import csr_matrix

from saelake import queries
from saelake.analysis.stage import Work
from saelake.ingest.recipe.interactions import Interactions
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Examples:
    """Prompts as rows of x, the features that fire on a training prompt as its columns."""

    prompt_ids: np.ndarray
    """(n,) int64"""
    labels: np.ndarray
    """(n,) of text"""
    y: np.ndarray
    """(n,) float32: 1 target, 0 control"""
    split: np.ndarray
    """(n,) of train, val and test"""
    x: csr_matrix
    """(n, m) float32: values divided by `scale`"""
    sae_ids: np.ndarray
    """(m,) of text"""
    layers: np.ndarray
    """(m,)"""
    feature_ids: np.ndarray
    """(m,)"""
    scale: np.ndarray
    """(m,) float32: the largest value in training"""
    n_train: np.ndarray
    """(m,): training prompts on which the feature fires"""
    n_untrained: int
    """Features that fire on val or test prompts only; nothing can be learned about them, so x leaves them out."""

    @property
    def places(self) -> dict[str, np.ndarray]:
        """split -> rows of x"""
        return {name: np.flatnonzero(self.split == name) for name in SPLITS}


def examples_of(work: Work, leave_out: str | None = None) -> Examples:
    """The examples that a recipe describes, by SQL over the study's activations; none of a split that is left out."""
    settings = work.context.recipe.interactions
    with work.sql("prompts", "activations", "direction") as con:
        prompts = queries.run(
            con,
            "fm_prompts",
            sets=_sets(settings),
            balanced=settings.balanced,
            val=settings.val,
            test=settings.test,
            seed=work.spec.seed,
            leave_out=leave_out,
        ).fetchnumpy()
        cells = cells_of(con, work)
    roles = [work.context.recipe.labels.role(label) for label in prompts["label"]]
    return examples({**prompts, "label_role": np.array(roles, dtype=object)}, cells)


def _sets(settings: Interactions) -> str | None:
    """The prompt sets to learn from, as the questions take them; None for all."""
    return ",".join(settings.sets) or None


def cells_of(con: duckdb.DuckDBPyConnection, work: Work) -> Mapping[str, np.ndarray]:
    """The value of each feature on each prompt that has one: columns prompt_id, number, layer, sae_id, feature_id and value."""
    settings = work.context.recipe.interactions
    excluded = list(work.context.recipe.candidates.exclude_layers)
    found = queries.run(
        con, "fm_input", tokens=settings.tokens, aggregate=settings.aggregate, exclude_layers=excluded, sets=_sets(settings)
    ).to_arrow_table()
    if not len(found):
        raise UserError(
            "interactions: no feature fires on the last tokens in a layer from the first one up to the direction's: raise tokens"
        )
    cells = {name: found[name].to_numpy() for name in found.column_names if name != "sae_id"}
    # Of millions of cells, each SAE's name is there once.
    sae_ids = found["sae_id"].combine_chunks().dictionary_encode()
    return cells | {"sae_id": np.array(sae_ids.dictionary.to_pylist(), dtype=object)[sae_ids.indices.to_numpy()]}


def examples(prompts: Mapping[str, np.ndarray], cells: Mapping[str, np.ndarray]) -> Examples:
    """From the rows of the queries fm_prompts, with the label_role of each, and fm_input.

    Raises UserError if a label is missing.
    """
    prompt_ids, roles = prompts["prompt_id"], prompts["label_role"].astype(str)
    split = prompts["split"].astype(str)
    for role in ("target", "control"):
        if not ((roles == role) & (split == "train")).any():
            raise UserError(f"interactions.sets has no {role} prompt to train on: both labels are needed")
    row = np.searchsorted(prompt_ids, cells["prompt_id"])
    wanted = prompt_ids[np.minimum(row, len(prompt_ids) - 1)] == cells["prompt_id"]
    row, number, value = row[wanted], cells["number"][wanted], cells["value"][wanted]
    n_numbers = int(cells["number"].max()) + 1

    in_train = (split == "train")[row]
    n_train = np.bincount(number[in_train], minlength=n_numbers)
    n_any = np.bincount(number, minlength=n_numbers)
    scale = np.zeros(n_numbers, dtype=np.float32)
    np.maximum.at(scale, number[in_train], value[in_train])
    # The most common features first: what is wanted most often lies side by side in memory.
    kept = np.argsort(-n_train, kind="stable")[: np.count_nonzero(n_train)]
    place = np.full(n_numbers, -1, dtype=np.int32)
    place[kept] = np.arange(len(kept), dtype=np.int32)

    learned = place[number] >= 0
    row, column, value = row[learned], place[number[learned]], value[learned]
    x = csr_matrix((value / scale[kept][column], (row, column)), shape=(len(prompt_ids), len(kept)), dtype=np.float32)
    first = np.zeros(n_numbers, dtype=np.int64)  # a cell of every feature
    first[cells["number"]] = np.arange(len(cells["number"]))
    return Examples(
        prompt_ids=prompt_ids,
        labels=prompts["label"].astype(str),
        y=(roles == "target").astype(np.float32),
        split=split,
        x=x,
        sae_ids=np.asarray(cells["sae_id"])[first[kept]],
        layers=np.asarray(cells["layer"], dtype=np.int16)[first[kept]],
        feature_ids=np.asarray(cells["feature_id"], dtype=np.int32)[first[kept]],
        scale=scale[kept],
        n_train=n_train[kept],
        n_untrained=int(np.count_nonzero((n_any > 0) & (n_train == 0))),
    )


def identity(study: Study) -> Mapping[str, object]:
    """What the examples depend on beside [interactions]."""
    return {"exclude_layers": list(study.recipe.candidates.exclude_layers)}
