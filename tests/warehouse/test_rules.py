"""What rows point to: every column that says so is held to it, whatever it is called."""

import re

import numpy as np
import pyarrow as pa

from saelake.warehouse.rules import POINTED, Known, broken_rules, broken_values
from saelake.warehouse.schema import DIRECTIONS, TABLES

SAES = {"saes": Known(np.array(["a", "b"]), {"layer": np.array([1, 2]), "width": np.array([4, 8])})}


def test_the_columns_say_what_is_pointed_to() -> None:
    assert {name: sorted(columns) for name, columns in POINTED.items()} == {
        "prompts": ["n_tokens", "prompt_id"],
        "saes": ["layer", "sae_id", "width"],
        "feature_sets": ["set_id"],
        "ablations": ["ablation_id"],
    }


def test_the_other_feature_of_a_pair_is_held_to_its_sae_too() -> None:
    columns = {
        "run_id": ["run"] * 4,
        "sae_id": ["a", "a", "a", "c"],
        "layer": [1, 2, 1, 1],
        "feature_id": [3, 3, 4, 3],
        "other_sae_id": ["b", "b", "c", "b"],
        "other_layer": [2, 1, 2, 2],
        "other_feature_id": [7, 7, 7, 8],
        "cosine": [0.5] * 4,
    }
    table = TABLES["decoder_cosines"]
    rows = pa.table(columns).cast(table.schema).to_batches()[0]
    assert {what: n for what, n in broken_rules(table, rows, "run", SAES) if n} == {
        "layer is not the SAE's": 1,
        "feature_id is past the SAE's width": 1,
        "other_sae_id is not in saes of this run or of one that it is computed from": 1,
        "other_layer is not the SAE's": 1,
        "other_feature_id is past the SAE's width": 1,
        "sae_id is not in saes of this run or of one that it is computed from": 1,
    }


def test_whoever_names_an_sae_or_a_feature_is_held_to_it_and_nothing_is_counted_below_0() -> None:
    for table in TABLES.values():
        for column in table.columns:
            name = f"{table.name}.{column.name}"
            if re.search(r"(^|_)sae_id(_|$)", column.name):
                assert column.refers == "saes.sae_id" or table.name == "saes", name
            if re.search(r"(^|_)feature_id(_|$)", column.name):
                assert column.limit is not None, name
            if pa.types.is_integer(column.type) and column.refers is None and column.name not in {table.owns, "seed"}:
                assert column.at_least is not None, name


def test_of_a_list_the_rows_are_counted_and_not_its_items() -> None:
    nan = float("nan")
    values = pa.array([[1.0, nan, nan], [1.0], [nan]], pa.list_(pa.float32()))
    assert ("is not a finite number", 2) in list(broken_values(DIRECTIONS, DIRECTIONS.column("vector"), values))


def test_what_is_missing_points_nowhere() -> None:
    table = TABLES["waking_passes"]
    names = [c.name for c in table.stored() if c.name.startswith("source_")]
    rows = pa.record_batch({name: pa.array([None, None], table.schema.field(name).type) for name in names})
    assert not any(n for _, n in broken_rules(table, rows, "run", SAES))


def test_what_is_missing_breaks_no_rule_of_its_column() -> None:
    """Of a choice of words too: null is none of them, and has a meaning of its own."""
    for table in TABLES.values():
        for column in (c for c in table.columns if c.null is not None):
            missing = pa.nulls(2, column.type)
            assert not any(n for _, n in broken_values(table, column, missing)), f"{table.name}.{column.name}"
    audited = TABLES["recoveries"]
    control = pa.array(["random", None, "chance"])
    assert [n for _, n in broken_values(audited, audited.column("control"), control)] == [1]
