"""Every format brings in what its sample holds, joins the study, stays a sound lake, and writes what it reads again."""

import csv
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.formats import joined
from saelake.formats.names import names
from saelake.formats.registry import Asked, load
from saelake.formats.transfer import _told, bring_in, write_out
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.durable import canonical_json
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.formats.files import as_csv
from tests.formats.samples import INPUTS, Sample
from tests.formats.written import OUTPUTS, written_lake
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
    share(lake, tmp_path / "set")
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")
    assert other.run_ids() == lake.run_ids()
    share(other, tmp_path / "again")


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


@pytest.mark.parametrize("value", [{"x": float("inf")}, {"x": float("nan")}, "half \ud800 letter", {"x": ["\udc00"]}])
def test_what_is_told_of_a_source_fits_a_record(value: object) -> None:
    assert canonical_json(_told(value)).encode()


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
