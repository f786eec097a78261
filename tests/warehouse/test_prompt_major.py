"""The copy of the activations by prompt: the same rows in another order, in a table of its own, only where it is asked for."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake import queries
from saelake.analysis.rows_dataset import LakeRows
from saelake.ingest.job import ingest
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.activation_sort import by_feature, by_prompt, find_parts
from saelake.warehouse.catalog import connect, current_runs, files_behind
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import Rows, land
from saelake.warehouse.order import RowOrder
from saelake.warehouse.schema import ACTIVATIONS, ACTIVATIONS_BY_PROMPT
from saelake.warehouse.synth import synthesize
from tests.warehouse import toys

TAG = toys.ingest_spec().tag << 32
Row = tuple[int, int, int, int, str]
"""layer, feature_id, prompt, pos, and which of the layer's SAEs"""


def test_it_holds_the_same_rows_and_changes_no_other_table(tmp_path: Path) -> None:
    with_copy, without = Lake.create(tmp_path / "with"), Lake.create(tmp_path / "without")
    record = synthesize(with_copy, replace(toys.SHAPE, prompt_major=True))
    plain = synthesize(without, toys.SHAPE)
    assert record.n_rows("activations") == record.n_rows("activations_by_prompt") == plain.n_rows("activations") > 0
    assert plain.n_rows("activations_by_prompt") == 0
    assert check(with_copy) == []
    columns = ", ".join(c.name for c in ACTIVATIONS.columns)
    with connect(with_copy) as con:
        rows = con.execute(f"select {columns} from activations order by all").fetchall()
        assert con.execute(f"select {columns} from activations_by_prompt order by all").fetchall() == rows
        assert len(rows) == record.n_rows("activations"), "a row shows twice in `activations`"
    files = [f for f in record.files if f.table == "activations_by_prompt"]
    assert len(files) == 1
    order = RowOrder(ACTIVATIONS_BY_PROMPT.unique)
    for batch in pq.ParquetFile(with_copy.root / files[0].path).iter_batches(100):
        order.update(batch)
    assert (order.n_repeated, order.n_misplaced) == (0, 0)


def test_a_recipe_asks_for_it(tmp_path: Path) -> None:
    recipe = load_recipe("organism").limit(2)
    assert not recipe.capture.prompt_major
    capture = recipe.capture.model_copy(update={"prompt_major": True})
    lake = Lake.create(tmp_path / "lake")
    record = ingest(recipe.model_copy(update={"capture": capture}), lake)
    assert record.n_rows("activations_by_prompt") == record.n_rows("activations") > 0
    assert check(lake) == []


@pytest.mark.parametrize(("question", "parameters"), [("prompt", {"n": 3}), ("prompt", {"layer": 1}), ("firing_on_tokens", {})])
def test_questions_answer_alike_with_and_without_it(tmp_path: Path, question: str, parameters: dict[str, int]) -> None:
    lake = Lake.create(tmp_path / "lake")
    synthesize(lake, replace(toys.SHAPE, prompt_major=True), recipe="copied")
    synthesize(lake, toys.SHAPE, recipe="plain")
    answers = []
    for recipe in ("copied", "plain"):
        with connect(lake, recipe) as con:
            (prompt_id,) = con.execute("select min(prompt_id) + 5 from prompts").fetchall()[0]
            rows = queries.run(con, question, prompt_id=prompt_id, **parameters)
            answers.append(rows.select("* exclude (prompt_id)").fetchall())
    with connect(lake) as con:  # one run with a copy and one without, side by side
        rows = queries.run(con, question, prompt_id=prompt_id, **parameters)
        answers.append(rows.select("* exclude (prompt_id)").fetchall())
    assert answers[0] == answers[1] == answers[2] != []


def test_a_copy_of_some_layers_does_not_pass_for_all(tmp_path: Path) -> None:
    """As a study that was copied and then grew by a layer, without a copy, holds it."""
    recipe = load_recipe("organism").limit(2)
    copied = {"capture": recipe.capture.model_copy(update={"prompt_major": True})}
    lake = Lake.create(tmp_path / "lake")
    ingest(recipe.model_copy(update=copied | {"saes": recipe.saes.model_copy(update={"layers": (4,)})}), lake)
    ingest(recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"layers": (2, 4)})}), lake)
    with connect(lake) as con:
        wanted = con.execute("select layer, count(*) from activations group by all order by all").fetchall()
        assert [layer for layer, _ in wanted] == [2, 4]
        assert con.execute("select count(*) from all_runs.activations_by_prompt").fetchall() == [wanted[1][1:]]
        assert con.execute("from activations_by_prompt").fetchall() == []
        (prompt_id,) = con.execute("select min(prompt_id) from prompts").fetchall()[0]
        rows = queries.run(con, "firing_on_tokens", prompt_id=prompt_id).project("layer").distinct().order("layer").fetchall()
        assert rows == [(2,), (4,)]
    assert "activations_by_prompt" not in files_behind(lake, current_runs(lake))
    found = [next(iter(LakeRows(lake, recipe.name, layer=layer, bos=True, batch_rows=2))) for layer in (2, 4)]
    assert all(one["x"].any() for one in found)


def rows_of_a_run(n_saes: int) -> st.SearchStrategy[list[Row]]:
    columns = (
        st.sampled_from([0, 3]),
        st.integers(0, 5) | st.just(70_000),
        st.integers(0, 6),
        st.integers(0, 4) | st.just(32_767),
        st.sampled_from("cab"[:n_saes]),
    )
    return st.lists(st.tuples(*columns), max_size=40, unique=True)


def _land(folder: Path, shards: Sequence[Sequence[Row]]) -> dict[int, list[Path]]:
    for number, shard in enumerate(shards):
        parts = []
        for layer in sorted({row[0] for row in shard}):
            mine = [row for row in shard if row[0] == layer]
            columns = {
                "sae_id": [f"sae{layer}{sae}" for *_, sae in mine],
                "layer": [layer] * len(mine),
                "feature_id": [f for _, f, *_ in mine],
                "prompt_id": [TAG + p for _, _, p, *_ in mine],
                "pos": [pos for *_, pos, _ in mine],
                "activation": [float(_activation(row)) for row in mine],
            }
            parts.append(Rows.of(ACTIVATIONS, columns, layer))
        land(folder / str(number), parts)
    return {layer: sorted(folder.glob(f"*/activations/layer-{layer:02d}.parquet")) for layer in (0, 3)}


def _activation(row: Row) -> np.float32:
    return np.float32(1 + (hash(row) % 1000) / 7)


def _found(
    batches: Sequence[pa.RecordBatch], layer: int | None, sae_id: str | None
) -> list[tuple[int, int, int, int, str, float]]:
    """The rows of some batches, which leave out the layer, and the SAE where it is one's."""
    found = []
    for row in (row for batch in batches for row in batch.to_pylist()):
        of_layer, of_sae = row.get("layer", layer), row.get("sae_id", sae_id)
        assert of_sae.startswith(f"sae{of_layer}")
        found.append((of_layer, row["feature_id"], row["prompt_id"] - TAG, row["pos"], of_sae[-1], row["activation"]))
    return found


@pytest.mark.parametrize("n_saes", [1, 3])
@settings(max_examples=40)
@given(st.data(), st.integers(1, 3), st.integers(1, 50), st.sampled_from([0, 50]))
def test_counting_sorts_as_comparing_does(
    n_saes: int, data: st.DataObject, n_shards: int, range_rows: int, kept_rows: int
) -> None:
    """Whatever the order in which rows were landed, however few fit in memory at once, and however many SAEs a layer has."""
    rows = data.draw(rows_of_a_run(n_saes))
    expected = [(*row, float(_activation(row))) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        files = _land(Path(folder), [rows[i::n_shards] for i in range(n_shards)])
        parts = find_parts(files, kept_rows)
        assert parts is not None
        for layer in {row[0] for row in rows}:
            mine = [part for part in parts if part.layer == layer]
            in_order = sorted((r for r in expected if r[0] == layer), key=lambda r: r[1:5])
            assert _found(list(by_feature(mine, range_rows)), layer, mine[0].sae_id) == in_order
        if parts:
            in_order = sorted(expected, key=lambda r: (r[2], r[0], r[1], r[3], r[4]))
            assert _found(list(by_prompt(parts, range_rows)), None, None) == in_order


def test_a_row_that_comes_twice_is_refused(tmp_path: Path) -> None:
    parts = find_parts(_land(tmp_path, [[(0, 1, 2, 3, "a")], [(0, 1, 2, 3, "a"), (0, 1, 2, 3, "b")]]))
    assert parts is not None
    for sort in (by_feature, by_prompt):
        with pytest.raises(AssertionError, match="a row comes twice"):
            list(sort(parts))


def test_rows_that_cannot_be_counted_are_left_to_duckdb(tmp_path: Path) -> None:
    assert find_parts(_land(tmp_path, [[(0, 2**30, 2, 3, "a")]])) is None
