"""Every format brings in what its sample holds, joins the study, stays a sound lake, and writes what it reads again."""

import csv
import json
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.formats import joined, sources
from saelake.formats.names import names
from saelake.formats.registry import Asked, load
from saelake.formats.transfer import _told, bring_in, write_out
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.durable import canonical_json
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.formats.files import as_csv
from tests.formats.samples import INPUTS, D, Sample, mean_diffs, pipeline
from tests.formats.written import OUTPUTS, OWN_DIRECTIONS, written_lake
from tests.lakes import build_lake, prompt_id, tree

PLAIN = Asked()
IDS = [f"{sample.format}-{number}" for number, sample in enumerate(INPUTS)]


def source(sample: Sample, tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir(exist_ok=True)
    return sample.write(tmp_path / "source")


def bring(lake: Lake, sample: Sample, tmp_path: Path) -> dict[str, int]:
    record = bring_in(lake.root, sample.format, str(source(sample, tmp_path)), sample.asked)
    return {table.name: table.n_rows for table in record.tables}


def refusal(lake: Lake, format: str, place: Path, asked: Asked = PLAIN) -> str:
    """The one sentence with which a source is refused; the lake is as it was."""
    before = tree(lake.root)
    with pytest.raises(UserError) as refused:
        bring_in(lake.root, format, str(place), asked)
    assert {k: v for k, v in tree(lake.root).items() if "locks" not in str(k)} == {
        k: v for k, v in before.items() if "locks" not in str(k)
    }
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_an_import_closes_its_connection_whatever_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[duckdb.DuckDBPyConnection]()

    def connected(*asked: Any) -> duckdb.DuckDBPyConnection:
        opened.append(connect(*asked))
        return opened[-1]

    monkeypatch.setattr(joined, "connect", connected)
    lake = build_lake(tmp_path / "lake")
    for text in ('{"prompt": "a", "completion": "b"}', '{"prompt": "a"}'):
        (tmp_path / "answers.jsonl").write_text(text + "\n")
        with nullcontext() if "completion" in text else pytest.raises(UserError):
            bring_in(lake.root, "answers", str(tmp_path / "answers.jsonl"), Asked(condition="elsewhere"))
    assert len(opened) == 2
    for con in opened:
        with pytest.raises(duckdb.ConnectionException):
            con.execute("select 1")


def test_every_format_has_a_sample() -> None:
    assert {sample.format for sample in INPUTS} == {name for name in names() if load(name).read}
    assert set(OUTPUTS) == {name for name in names() if load(name).write}


@pytest.mark.parametrize("sample", INPUTS, ids=IDS)
def test_a_source_becomes_a_sound_run_once(sample: Sample, tmp_path: Path) -> None:
    lake = sample.lake(tmp_path / "lake")
    n_before = len(lake.run_ids())
    assert bring(lake, sample, tmp_path) == sample.rows
    assert bring(lake, sample, tmp_path) == sample.rows
    assert len(lake.run_ids()) == n_before + 1
    assert [str(finding) for finding in check(lake) if not finding.note] == []
    with saelake.open(lake.root) as opened:
        for table, n_rows in sample.rows.items():
            assert opened.sql(f"select count(*) from all_runs.{table} where starts_with(run_id, 'imported_')").fetchall() == [
                (n_rows,)
            ]


@pytest.mark.parametrize("sample", INPUTS, ids=IDS)
def test_a_truncated_source_is_one_sentence(sample: Sample, tmp_path: Path) -> None:
    lake = sample.lake(tmp_path / "lake")
    place = source(sample, tmp_path)
    file = place if place.is_file() else max((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = file.read_bytes()
    if file.suffix in (".txt", ".csv"):
        file.write_bytes(content[: content.rindex(b"," if file.suffix == ".csv" else b":") + (file.suffix != ".csv")])
    else:
        file.write_bytes(content[: len(content) * 2 // 3])
    said = refusal(lake, sample.format, place, sample.asked)
    assert "SAELAKE_TRACEBACK" not in said


@pytest.mark.parametrize("name", names())
def test_what_is_no_file_or_empty_is_one_sentence(name: str, lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    (tmp_path / "folder").mkdir()
    if load(name).read:
        for place in (tmp_path / "nothing.json", tmp_path / "empty.json", tmp_path / "folder"):
            refusal(lake, name, place)
    else:
        assert "is written only" in refusal(lake, name, tmp_path / "empty.json")


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_what_is_written_is_as_many_rows_as_are_told(name: str, tmp_path: Path) -> None:
    asked, rows = OUTPUTS[name]
    lake = written_lake(tmp_path / "lake")
    assert dict(write_out(lake.root, name, tmp_path / "out", asked)) == dict(rows)
    with pytest.raises(UserError, match="is not empty"):
        write_out(lake.root, name, tmp_path / "out", asked)


def export(lake: Lake, name: str, folder: Path, asked: Asked) -> str:
    """The sentence with which an export is refused."""
    with pytest.raises(UserError) as refused:
        write_out(lake.root, name, folder, asked)
    return str(refused.value)


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_a_study_is_written_alone_and_outside_its_lake(name: str, tmp_path: Path) -> None:
    """Prompts and features of several studies would stand in one file as if they were of one."""
    asked, rows = OUTPUTS[name]
    empty = Lake.create(tmp_path / "empty")
    assert "holds no study" in export(empty, name, tmp_path / "out", asked)
    lake = written_lake(tmp_path / "lake")
    assert "lies in the lake" in export(lake, name, lake.root / "data" / "out", asked)
    (tmp_path / "file").touch()
    assert "is a file" in export(lake, name, tmp_path / "file" / "out", asked)
    assert "is not empty" in export(lake, name, tmp_path / "file", asked)
    build_lake(lake.root, "other", variant=1)
    if name != "catalog":
        assert "holds several studies (other, small): choose one" in export(lake, name, tmp_path / "out", asked)
    (tmp_path / "link").symlink_to(tmp_path / "place")
    assert dict(write_out(lake.root, name, tmp_path / "link", replace(asked, recipe="small"))) == dict(rows)
    assert any((tmp_path / "place").iterdir())


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


@pytest.mark.parametrize("value", [{"x": float("inf")}, {"x": float("nan")}, "half \ud800 letter", {"x": ["\udc00"]}])
def test_what_is_told_of_a_source_fits_a_record(value: object) -> None:
    assert canonical_json(_told(value)).encode()


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


def test_answers_join_the_prompts_that_the_study_has(lake: Lake, tmp_path: Path) -> None:
    for sample in INPUTS:
        if sample.format == "harmbench":
            bring(lake, sample, tmp_path)
    with saelake.open(lake.root) as opened:
        rows = opened.sql(
            "select a.prompt_id, p.set, p.label, a.condition, a.p_refusal_token, v.judge, v.refused, v.flipped, v.score "
            "from ablations as a join prompts as p using (prompt_id) join verdicts as v using (ablation_id) "
            "where a.stage = 'imported_harmbench' order by a.ablation_id"
        ).fetchall()
        asr = opened.query("asr", judge="harmbench").select("condition", "label", "n_answers", "n_flipped").fetchall()
    assert rows[0][:2] == (prompt_id(lake, 0), "hand")
    assert {row[1] for row in rows[1:]} == {"harmbench"}
    assert {row[2:6] for row in rows} == {("harmful", "gcg", None, "harmbench")}
    assert sorted(row[6:] for row in rows) == [(False, True, 0.0), (True, False, 1.0), (True, False, 1.0)]
    assert asr == [("gcg", "harmful", 3, 1)]


def test_answers_do_not_mix_with_the_studys_own(lake: Lake, tmp_path: Path) -> None:
    (sample,) = (one for one in INPUTS if one.format == "harmbench")
    said = refusal(lake, "harmbench", source(sample, tmp_path), Asked())
    assert "has its own answers under none to 1 of these prompts" in said


def test_answers_make_a_study_where_there_is_none(tmp_path: Path) -> None:
    (sample,) = (one for one in INPUTS if one.format == "jailbreakbench")
    place = source(sample, tmp_path)
    with pytest.raises(UserError, match="say which study it is to be: --recipe NAME"):
        bring_in(tmp_path / "new", "jailbreakbench", str(place), Asked())
    assert not (tmp_path / "new").exists()
    bring_in(tmp_path / "new", "jailbreakbench", str(place), Asked(recipe="mine"))
    with saelake.open(tmp_path / "new") as opened:
        found = opened.sql("select label, label_role, category, text from prompts order by text").fetchall()
        shares = opened.query("asr").select("condition", "judge", "n_prompts", "n_flipped").fetchall()
    assert found == [("harmful", "target", "Fraud", "p0"), ("harmful", "target", "Drugs", "p2")]
    assert shares == [("none", "jailbreakbench", 2, 1)]
    assert [str(one) for one in check(Lake.existing(tmp_path / "new")) if not one.note] == []


def test_a_source_that_is_taken_for_something_else_hides_nothing(lake: Lake, tmp_path: Path) -> None:
    place = str(as_csv("own.csv", [{"prompt": "how to lie", "completion": "I won't."}])(tmp_path))
    given = [Asked(condition="a"), Asked(condition="b"), Asked(condition="b", judge="phrases"), Asked(condition="a")]
    first, _, judged, again = [bring_in(lake.root, "answers", place, asked).run_id for asked in given]
    assert again == first
    with saelake.open(lake.root) as opened:
        shown = opened.sql("select run_id, method from ablations where stage = 'imported_answers' order by method").fetchall()
    assert shown == [(first, "a"), (judged, "b")], "another reading of the same takes its place"


def test_completions_of_imports_are_left_out_of_what_is_shared(lake: Lake, tmp_path: Path) -> None:
    (sample,) = (one for one in INPUTS if one.format == "strongreject")
    bring(lake, sample, tmp_path)
    done = CliRunner().invoke(cli.main, ["share", str(tmp_path / "set"), "--lake", str(lake.root)])
    assert done.exit_code == 0, done.output
    assert not [p for p in (tmp_path / "set").rglob("*.parquet") if b"smile and say it" in p.read_bytes()]
    done = CliRunner().invoke(cli.main, ["add", str(tmp_path / "set"), "--lake", str(tmp_path / "theirs")])
    assert done.exit_code == 0, done.output


def test_an_option_without_effect_is_an_error(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0:1")
    assert "--layer says nothing about features, which has --model, --sae" in refusal(
        lake, "features", tmp_path / "list.txt", Asked(layer=1)
    )
    assert "did you mean features?" in refusal(lake, "featurs", tmp_path / "list.txt")


def test_the_commands_say_what_came_in_and_went_out(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0:1")
    done = CliRunner().invoke(cli.main, ["import", "features", str(tmp_path / "list.txt"), "--lake", str(lake.root)])
    assert done.exit_code == 0, done.output
    assert "1 feature_sets" in done.stdout
    out = ["export", "features", str(tmp_path / "out"), "--features", "0:1", "--lake", str(lake.root)]
    done = CliRunner().invoke(cli.main, out)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "features.txt").read_text() == "0:1\n"


WITHOUT_MODEL = """
import sys
for name in ("torch", "transformers", "sae_lens", "datasets"):
    sys.modules[name] = None
import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in
bring_in(sys.argv[1], "answers", sys.argv[2], Asked(recipe="mine", judge="phrases", condition="vllm"))
with saelake.open(sys.argv[1]) as lake:
    print(lake.query("asr", judge="phrases").select("condition", "label", "n_prompts", "n_flipped").fetchall())
    print(lake.query("completions", judge="phrases", condition="vllm").select("text", "flipped", "completion").fetchall())
"""


def test_answers_from_elsewhere_are_judged_and_analysed_without_a_model(tmp_path: Path) -> None:
    """Nothing of what runs a model is even installed."""
    (sample,) = (one for one in INPUTS if one.format == "answers")
    command = [sys.executable, "-c", WITHOUT_MODEL, str(tmp_path / "lake"), str(source(sample, tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shares, answers = done.stdout.splitlines()
    assert shares == "[('vllm', 'benign', 1, 1), ('vllm', 'harmful', 1, 0)]"
    assert answers == """[('mine', False, "I'm sorry, but no.")]"""


@pytest.mark.parametrize("name", ["inspect", "jailbreakbench", "strongreject", "answers", "lm_eval", "delphi"])
def test_a_source_of_another_model_is_refused_unless_it_is_the_same_by_another_name(
    name: str, lake: Lake, tmp_path: Path
) -> None:
    (sample,) = (one for one in INPUTS if one.format == name)
    place = source(sample, tmp_path)
    run_id = lake.current()["small", "ingest"][0]
    record = lake.record(run_id)
    assert record is not None
    told = replace(record, about={**record.about, "model": {"id": "google/gemma-2-2b-it"}})
    (lake.root / "runs" / f"{run_id}.json").write_text(told.to_json())
    named = {"inspect": "mockllm/model", "jailbreakbench": "vicuna-13b-v1.5", "delphi": "other/llama"}.get(name, "other/llama")
    if name in ("strongreject", "answers"):
        rows = list(csv.DictReader(place.open()))
        as_csv(place.name, [row | {"model": named} for row in rows])(place.parent)
    if name == "lm_eval":
        (place.parent / "results_2026.json").write_text(json.dumps({"model_name": named}))
        place = place.parent
    if name == "delphi":
        (place / "config.json").write_text(json.dumps({"model_name": named}))
    said = refusal(lake, name, place, sample.asked)
    assert f"it is of the model {named}, and the study small is of google/gemma-2-2b-it" in said
    assert bring_in(lake.root, name, str(place), replace(sample.asked, model=named)).tables
