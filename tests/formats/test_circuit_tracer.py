"""Attribution graphs become edges between features of the study's SAEs."""

import json
from pathlib import Path
from typing import Any

import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in
from saelake.warehouse.lake import Lake
from tests.formats.samples import GRAPH
from tests.formats.test_formats import refusal


def test_edges_between_features_are_kept_and_others_counted(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    record = bring_in(lake.root, "circuit_tracer", str(tmp_path / "graph.json"), Asked())
    assert record.about["n_left_out"] == 2
    with saelake.open(lake.root) as opened:
        columns = "graph, source_sae_id, source_feature_id, source_pos, sae_id, feature_id, pos, weight"
        assert opened.sql(f"select {columns} from graph_edges").fetchall() == [("theft", "sae0", 1, 2, "sae1", 3, 2, -0.25)]


@pytest.mark.parametrize(
    ("part", "place", "change", "why"),
    [
        ("nodes", 1, {"node_id": "0_4_2"}, "there is no feature 4 in sae0"),
        ("nodes", 1, {"node_id": "0_1_3", "ctx_idx": 3}, "its position 3 is past the prompt's end"),
        ("nodes", 1, {"node_id": "6_1_2", "layer": "6"}, "the study small has no SAE '6'"),
        ("nodes", 1, {"layer": "1"}, "says another layer or position"),
        ("nodes", 2, {"node_id": "0_1_2", "layer": "0"}, "comes twice"),
        ("links", 1, {"target": "1_2_2"}, "there is no node '1_2_2'"),
        ("links", 1, {"weight": "x"}, "not a finite number"),
        ("links", 2, {"source": "0_1_2", "target": "1_3_2"}, "comes twice"),
    ],
)
def test_a_graph_that_does_not_fit_is_one_sentence(
    part: str, place: int, change: dict[str, object], why: str, lake: Lake, tmp_path: Path
) -> None:
    graph: dict[str, Any] = json.loads(json.dumps(GRAPH))
    graph[part][place] |= change
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    assert why in refusal(lake, "circuit_tracer", tmp_path / "graph.json")
