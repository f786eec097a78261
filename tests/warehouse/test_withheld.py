"""What a set leaves out, whichever of a lake's runs and tables it holds."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import saelake
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import READINGS
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from tests.conftest import ROOT
from tests.lakes import build_lake, prompt_id, publish
from tests.warehouse.test_sharing import rows


def test_a_set_is_restricted_whichever_runs_are_shared(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    (ingested, answered), about = (lake.current()["small", stage][0] for stage in ("ingest", "candidates")), {"set": "hand"}
    record = lake.record(ingested)
    assert record is not None
    lake.publish(replace(record, about={**record.about, "prompts": [about | {"restricted": True}]}))
    share(lake, tmp_path / "set", Choice(runs=(answered,), with_completions=True))
    add(Lake.create(tmp_path / "other"), tmp_path / "set")
    said = "select count(*) from ablations where completion not like 'withheld:%'"
    assert rows(Lake(tmp_path / "other"), said) == [(0,)]
    assert "hand" in (tmp_path / "set" / "README.md").read_text()
    assert rows(lake, "select count(*) from ablations where completion like 'withheld:%'") == [(0,)]


def test_what_backends_read_of_restricted_sets_spells_nothing(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    ids = [prompt_id(lake, prompt) for prompt in (0, 0, 1, 1)]
    read = {"backend": ["transformers"] * 4, "prompt_id": ids, "layer": [0] * 4, "site": ["z"] * 4, "pos": [0, 1] * 2}
    measured = {"norm": [1.0] * 4, "sketch": [[0.5] * 64] * 4, "noise": [None] * 4}
    parents, about = lake.current()["small", "ingest"], {"graph_prompts": ["what it was given"]}
    spec = RunSpec("readings_transformers", "small", {}, parents, about=about)
    publish(lake, spec, [Rows.of(READINGS, read | {"token_id": [5, 6, 7, 8]} | measured)])
    spelt = "select token_id, norm from readings order by prompt_id, pos"
    for choice, ids in ((Choice(), [5, 6, 7, 8]), (Choice(restricted=("hand",)), [0] * 4)):
        target = tmp_path / str(len(choice.restricted))
        shared = next(r for r in share(lake, target, choice) if r.stage == spec.stage)
        add(Lake.create(target / "lake"), target)
        assert rows(Lake(target / "lake"), spelt) == [(one, 1.0) for one in ids]
        assert shared.withheld == (("readings.token_id",) if choice.restricted else ())
        assert ("graph_prompts" in shared.about) == (not choice.restricted)


def test_runs_without_rows_are_not_shared_alone(tmp_path: Path) -> None:
    golden = Lake.existing(shutil.copytree(ROOT / "tests" / "golden" / "v2" / "lake", tmp_path / "lake"))
    (empty,) = [record.run_id for record in golden.records() if record.stage == "losses"]
    for choice in (Choice(runs=(empty,)), Choice(tables=("losses",))):
        with pytest.raises(UserError, match="none of the chosen runs has rows"):
            share(golden, tmp_path / "set", choice)
    assert not (tmp_path / "set").exists()


def test_whatever_is_told_of_rows_they_are_shared_and_added(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    with saelake.open(lake.root) as opened:
        (row,) = opened.sql("select prompt_id from prompts limit 1").fetchall()
        columns = {"prompt_id": row, "p_refusal_token": [0.5], "first_token": ["I"], "completion": ["I cannot."]}
        about = {"model": "gpt-4o", "saes": ["a", 1], "prompts": [{"set": "theirs"}]}
        opened.write("ablations", columns | {"stage": ["notebook"], "method": ["mine"]}, about=about)
    share(lake, tmp_path / "set")
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")
    assert set(other.run_ids()) == set(lake.run_ids())


def test_equal_completions_stay_equal_and_others_different(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    share(lake, tmp_path / "set", Choice(tables=("prompts", "tokens", "saes", "ablations")))
    add(Lake.create(tmp_path / "other"), tmp_path / "set")
    pairs = (
        "select a.ablation_id, b.ablation_id, a.completion = b.completion from ablations as a "
        "join ablations as b using (prompt_id) join prompts using (prompt_id) where label = 'harmful' order by all"
    )
    before = rows(lake, pairs)
    assert {is_equal for *_, is_equal in before} == {True, False}
    assert rows(Lake(tmp_path / "other"), pairs) == before
