"""Lists of features and directions: what comes in, what goes out, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import saelake
from saelake.formats import sources
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in, write_out
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.formats.samples import D, mean_diffs, pipeline
from tests.formats.test_formats import refusal
from tests.formats.written import OWN_DIRECTIONS, written_lake


def test_lists_of_features_make_the_round_trip(lake: Lake, tmp_path: Path) -> None:
    select = "select sae_id, feature_id, 0.5 as value, 'user' as positions from saes, (values (1), (3)) as f(feature_id)"
    write_out(lake.root, "features", tmp_path / "out", Asked(features=select))
    found = {}
    for kind in ("json", "txt", "csv"):
        record = bring_in(lake.root, "features", str(tmp_path / "out" / f"features.{kind}"), Asked())
        with saelake.open(lake.root) as opened:
            columns = "sae_id, feature_id, value, positions"
            found[kind] = opened.sql(
                f"select {columns} from feature_sets where run_id = '{record.run_id}' order by all"
            ).fetchall()
    assert found["csv"] == [(sae, i, 0.5, "user") for sae in ("sae0", "sae1") for i in (1, 3)]
    assert found["json"] == found["txt"] == [(sae, i, 0.0, None) for sae in ("sae0", "sae1") for i in (1, 3)]


def test_a_list_that_names_its_saes_takes_no_other(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("sae0:1 sae0:2")
    assert "--sae says nothing" in refusal(lake, "features", tmp_path / "list.txt", Asked(sae="sae1"))
    (tmp_path / "list.txt").write_text("sae0:1 2")
    bring_in(lake.root, "features", str(tmp_path / "list.txt"), Asked(sae="sae1"))


def test_two_saes_of_one_public_name_are_not_written_over_each_other(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "source_of", lambda sae, model: (model, "3-res-16k"))
    with pytest.raises(UserError, match="one name, small/3-res-16k, for sae0 and sae1"):
        write_out(lake.root, "neuronpedia", tmp_path / "out", Asked())
    select = "select sae_id, 1 as feature_id from saes"
    with pytest.raises(UserError, match="for sae0 and sae1"):
        write_out(lake.root, "features", tmp_path / "out", Asked(features=select))
    assert write_out(lake.root, "features", tmp_path / "out", Asked(features=f"{select} where sae_id = 'sae0'"))


@pytest.mark.parametrize(
    ("row", "asked", "why"),
    [
        ({"modelId": "small", "layer": "sae0", "index": "4"}, Asked(), r"there is no feature 4 in sae0: its features are 0 to 3"),
        ({"modelId": "m", "layer": "3-res", "index": "1"}, Asked(), r"m/3-res is not known to be an SAE of small"),
        ({"modelId": "gemma-2-2b", "layer": "5-gemmascope-res-16k", "index": "1"}, Asked(sae="sae1"), r"another SAE"),
        ({"modelId": "m", "layer": "3-res", "index": "x"}, Asked(sae="sae1"), r"'x' is not a feature"),
        ({"modelId": "m", "layer": "3-res", "index": 1}, Asked(sae="sae7"), r"--sae: the study small has no SAE 'sae7'"),
    ],
)
def test_a_list_about_another_sae_is_refused(row: dict[str, object], asked: Asked, why: str, lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([row]))
    assert re.search(why, refusal(lake, "features", tmp_path / "list.json", asked))


def test_directions_are_those_of_the_block_before(lake: Lake, tmp_path: Path) -> None:
    """refusal_direction reads what enters a block, a lake what leaves the one before it."""
    bring_in(lake.root, "direction", str(pipeline(tmp_path)), Asked())
    with saelake.open(lake.root) as opened:
        rows = opened.sql("select layer, vector, norm, chosen, left_out from directions order by layer").fetchall()
    wanted = mean_diffs()[-1]
    assert [row[0] for row in rows] == [0, 1]
    for layer, vector, norm, chosen, left_out in rows:
        np.testing.assert_allclose(np.array(vector) * norm, wanted[layer + 1], rtol=1e-5)
        assert (chosen, left_out) == (False, "imported")


def test_the_studys_own_directions_make_the_round_trip(lake: Lake, tmp_path: Path) -> None:
    write_out(written_lake(tmp_path / "own").root, "direction", tmp_path / "out", Asked())
    assert json.loads((tmp_path / "out" / "direction_metadata.json").read_text()) == {"pos": -1, "layer": 2}
    bring_in(lake.root, "direction", str(tmp_path / "out"), Asked())
    with saelake.open(lake.root) as opened:
        found = opened.sql("select layer, vector, norm from directions order by layer").fetchall()
    assert found == [(row["layer"], row["vector"], row["norm"]) for row in OWN_DIRECTIONS]


def test_where_no_direction_is_chosen_none_is_written_as_if_it_were(tmp_path: Path) -> None:
    own = written_lake(tmp_path / "own")
    with saelake.open(own.root) as opened:
        rows = opened.sql("select * exclude (run_id) replace (false as chosen) from directions").to_arrow_table()
        opened.write("directions", rows, study="other")
    written = write_out(own.root, "direction", tmp_path / "out", Asked(recipe="other"))
    assert "direction.pt" not in written
    assert not {"direction.pt", "direction_metadata.json"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "generate_directions" / "mean_diffs.pt").is_file()


def test_directions_of_another_model_or_run_are_refused(lake: Lake, tmp_path: Path) -> None:
    import torch

    run = pipeline(tmp_path)
    bring_in(lake.root, "direction", str(run), Asked())
    np.save(tmp_path / "other.npy", np.ones(D + 1, dtype=np.float32))
    assert "the model of small is 8 wide: it is another model's" in refusal(
        lake, "direction", tmp_path / "other.npy", Asked(layer=0)
    )
    np.save(tmp_path / "nan.npy", np.array([1.0, np.nan], dtype=np.float32))
    assert "not finite numbers" in refusal(lake, "direction", tmp_path / "nan.npy", Asked(layer=0))
    np.save(tmp_path / "zero.npy", np.zeros(D, dtype=np.float32))
    assert "is 0, which is not a direction" in refusal(lake, "direction", tmp_path / "zero.npy", Asked(layer=0))
    torch.save(torch.ones(D), run / "direction.pt")
    assert "they are of two runs" in refusal(lake, "direction", run)
    (run / "direction_metadata.json").write_text('{"pos": -1, "layer": 0}')
    assert "no block's resid_post" in refusal(lake, "direction", run)
