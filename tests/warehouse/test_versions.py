"""A lake ages well: what an older version of the schema wrote opens, answers, is checked, shared, added and built on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest

import saelake
from saelake import queries
from saelake.analysis import stage_list, verbs
from saelake.analysis.study_status import study_status
from saelake.ingest.job import ingest
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.runs import ingest_runs
from saelake.ingest.study import open_study
from saelake.warehouse import schema
from saelake.warehouse.catalog import connect, current_runs, files_behind
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.schema import SCHEMA_VERSION, TABLES, Column, Table
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.golden import FOLDER as GOLDEN
from tests.golden import UNASKED, answers, recorded
from tests.lakes import WIDTH, build_lake
from tests.planted.study import write_planted
from tests.warehouse import toys

VERSIONS = sorted(folder.name for folder in GOLDEN.glob("v*"))


@pytest.fixture
def golden(tmp_path: Path) -> Callable[[str], Lake]:
    """Copies a golden lake, which may then be added to."""

    def copy(version: str) -> Lake:
        shutil.copytree(GOLDEN / version / "lake", tmp_path / version)
        return Lake.existing(tmp_path / version)

    return copy


@pytest.fixture
def younger(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces tables of the protocol by younger ones, with columns that came at this version."""

    def change(table: Table, *columns: Column, **fields: object) -> None:
        changed = replace(table, columns=(*table.columns, *columns), **fields)  # type: ignore[arg-type]
        monkeypatch.setitem(schema.TABLES, table.name, changed)

    return change


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_lake_is_sound_and_every_table_can_be_read(golden: Callable[[str], Lake], version: str) -> None:
    lake = golden(version)
    assert not [str(finding) for finding in check(lake)]
    with connect(lake) as con:
        written = {t.name for record in lake.records() for t in record.tables if t.n_rows}
        for name in TABLES:
            n_rows = con.sql(f"from {name}").to_arrow_table().num_rows
            assert (n_rows > 0) == (name in written), name


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_lake_answers_every_shipped_question_as_recorded(golden: Callable[[str], Lake], version: str) -> None:
    with saelake.open(golden(version).root) as lake:
        found = answers(lake)
    known = recorded(version)
    assert "asr" in known, "as that version answered"
    assert {name: {what: found[name][what] for what in answer} for name, answer in known.items()} == known
    assert {"search_methods", "k_choice", "critical_features", "top_samples", "prompt", "taxonomy", "comparisons"} <= {
        name for name, answer in found.items() if answer["n_rows"]
    }


def test_the_golden_lake_of_now_answers_every_question_that_is_shipped_now() -> None:
    assert recorded(f"v{SCHEMA_VERSION}").keys() == set(queries.names()) - UNASKED


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_lake_is_shared_and_added_to_a_lake_of_now(golden: Callable[[str], Lake], version: str, tmp_path: Path) -> None:
    lake = golden(version)
    share(lake, tmp_path / "set")
    mine = Lake.create(tmp_path / "mine")
    toys.ingest(mine)
    add(mine, tmp_path / "set", name="old")
    assert not check(mine)
    with connect(lake) as con, connect(mine, "old") as other:
        counts = "select count(*), sum(activation), (select count(*) from ablations) from activations"
        assert con.execute(counts).fetchall() == other.execute(counts).fetchall()


def test_a_column_that_came_later_is_null_or_derived_in_older_files(
    golden: Callable[[str], Lake], younger: Callable[..., None], tmp_path: Path
) -> None:
    lake = golden("v1")
    old = connect(lake).sql("select count(*), count(distinct prompt_id) from prompts").fetchall()
    later = Column("language", pa.string(), "the language of the text", null="not known", since=SCHEMA_VERSION)
    derived = Column("n_words", pa.int32(), "words", since=SCHEMA_VERSION, elsewhere="len(string_split(text, ' '))")
    younger(TABLES["prompts"], later, derived)
    with connect(lake) as con:
        assert con.sql("select count(*), count(distinct prompt_id) from prompts where language is null").fetchall() == old
        words = con.sql("select distinct n_words = len(string_split(text, ' ')), typeof(n_words) from prompts").fetchall()
        assert words == [(True, "INTEGER")]
    assert not check(lake)
    (files,) = files_behind(lake, current_runs(lake))["prompts"]
    assert pl.read_parquet(files.paths).height == old[0][0]


def test_runs_of_two_versions_are_one_table_and_one_layer_reads_its_files_only(
    golden: Callable[[str], Lake], younger: Callable[..., None]
) -> None:
    lake = golden("v1")
    old = connect(lake).sql("select layer, count(*) from alignments group by layer").fetchall()
    younger(TABLES["alignments"], Column("rank", pa.int32(), "rank by cosine", null="not ranked", since=SCHEMA_VERSION))
    build_lake(lake.root, "small")
    with connect(lake) as con:
        for layer, n_old in old:
            n_new = 2 * WIDTH if layer in (0, 1) else 0
            rows = con.execute(f"select count(*), count(rank) from alignments_of({layer})").fetchall()
            assert rows == con.execute(f"select count(*), 0 from alignments where layer = {layer}").fetchall()
            assert rows == [(n_old + n_new, 0)]
    assert len(files_behind(lake, current_runs(lake))["alignments"]) == 2
    assert len(files_behind(lake, current_runs(lake))["activations"]) == 1  # as many as there are layouts, not versions
    assert not check(lake)


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        ("none", ("none", None, None)),
        ("top_k_own", ("top_k", "own", None)),
        ("random", ("top_k", None, "random")),
        ("random_algorithm1", ("algorithm1", None, "random")),
        ("minimal", ("minimal", None, None)),
        ("minimal_silent", ("minimal", "silent", None)),
        ("algorithm1_common_complement", ("algorithm1", "common_complement", None)),
        ("algorithm1_n4", ("algorithm1_n4", None, None)),
        ("algorithm1_nauto_common", ("algorithm1_nauto", "common", None)),
        ("clamp_first_token", ("clamp", "first_token", None)),
        ("firing_on_tokens", ("firing_on_tokens", None, None)),
        ("waking_set_control", ("waking", "set", "matched")),
        ("stage3_control", ("stage3", None, "matched")),
        ("stage3_alone_control", ("stage3", "alone", "matched")),
        ("stage3_probe_alone", ("stage3_probe", "alone", None)),
        ("my_own", ("my_own", None, None)),
    ],
)
def test_a_condition_of_version_1_reads_as_method_part_and_control(condition: str, named: tuple[str | None, ...]) -> None:
    columns = [TABLES["ablations"].column(name) for name in ("method", "part", "control")]
    split = ", ".join(f"{column.elsewhere} as {column.name}" for column in columns)
    name = TABLES["ablations"].column("condition").elsewhere
    with duckdb.connect() as con:
        found = con.execute(
            f"with split as (select {split} from (select $1 as condition)) select *, {name} from split", [condition]
        )
        assert found.fetchall() == [(*named, condition)], "and back again"


def test_every_condition_of_a_golden_lake_is_method_part_and_control(golden: Callable[[str], Lake]) -> None:
    name = TABLES["ablations"].column("condition").elsewhere
    with connect(golden("v1")) as con:
        found = con.sql(f"select distinct condition, method, part, control, {name} as again from ablations").fetchall()
    assert all(row[0] == row[-1] for row in found)
    assert len({row[1:4] for row in found}) == len(found) > 20


def test_an_older_lake_takes_the_version_of_what_is_added_to_it(golden: Callable[[str], Lake]) -> None:
    lake = golden("v1")
    marker = lake.root / "saelake.json"
    assert json.loads(marker.read_text())["schema_version"] == 1
    toys.ingest(lake)
    assert json.loads(marker.read_text())["schema_version"] == SCHEMA_VERSION
    assert not check(lake)


def test_a_run_that_a_newer_saelake_wrote_is_refused(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    record = toys.ingest(lake)
    newer = replace(record, schema_version=SCHEMA_VERSION + 1)
    (tmp_path / "runs" / f"{record.run_id}.json").write_text(newer.to_json())
    with pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION + 1}, .* upgrade saelake"):
        connect(lake)


@pytest.fixture(scope="module")
def planted_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study that the golden lakes are about, as it was then."""
    folder = tmp_path_factory.mktemp("planted")
    write_planted(folder)
    return Path(shutil.copy(GOLDEN / "v1" / "recipe.toml", folder / "golden.toml"))


def test_a_study_of_version_1_is_found_and_built_on(golden: Callable[[str], Lake], planted_recipe: Path) -> None:
    lake, recipe = golden("v1"), load_recipe(planted_recipe)
    (ingested,) = lake.current()["golden", "ingest"]
    found = {one.stage: one for one in study_status(recipe, lake)}
    for stage in ("prompts", "activations"):
        assert (found[stage].state, found[stage].run_id) == ("done", ingested)
        assert "older version" in found[stage].why
    assert found["taxonomy"].state == "done"
    assert "capture" not in found["baseline"].why
    record = verbs.ablate(recipe, lake, "later", [(2, 0), (4, 1)])
    assert record.parents == (ingested,)
    with connect(lake) as con:
        same = "select count(*), bool_and(a.completion = b.completion) from ablations as a join ablations as b using (prompt_id)"
        rows = con.execute(f"{same} where a.condition = 'mine' and b.condition = 'later'").fetchone()
    assert rows == (12, True)
    assert not check(lake)


def test_an_l0_that_version_1_was_not_told_makes_runs_of_now(golden: Callable[[str], Lake], planted_recipe: Path) -> None:
    lake, recipe = golden("v1"), load_recipe(planted_recipe)
    (ingested,) = lake.current()["golden", "ingest"]
    declared = recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"l0": 3.0})})
    for asked, same in ((recipe, True), (declared, False)):
        (one,) = ingest_runs(open_study(asked), lake)
        assert {spec.run_id == ingested for spec in one.activations.values()} == {same}


@pytest.mark.parametrize(("fields", "same"), [({"max_prompt_tokens": 300}, True), ({"refusal_tokens": ("I", "you")}, False)])
def test_what_a_run_of_version_1_is_known_by_is_compared_where_it_counts(
    golden: Callable[[str], Lake], planted_recipe: Path, fields: dict[str, object], same: bool
) -> None:
    """Its id holds the target tokens, by which later stages of version 1 differ; longer prompts would have changed nothing."""
    lake, recipe = golden("v1"), load_recipe(planted_recipe)
    (ingested,) = lake.current()["golden", "ingest"]
    study = open_study(recipe.model_copy(update={"model": recipe.model.model_copy(update=fields)}))
    assert {one.prompts.run_id == ingested for one in ingest_runs(study, lake)} == {same}
    assert (lake.current()["golden", "taxonomy"] == (stage_list.specs(study, lake=lake)["taxonomy"].run_id,)) is same


def test_a_lake_of_version_1_grows_by_a_prompt_set_of_now(golden: Callable[[str], Lake], planted_recipe: Path) -> None:
    lake, recipe = golden("v1"), load_recipe(planted_recipe)
    before = {record.run_id: record for record in lake.records()}
    (older,) = lake.current()["golden", "ingest"]
    listed = "select prompt_id, text from prompts order by all"
    with connect(lake, "golden") as con:
        prompts, activations = con.sql(listed).fetchall(), con.sql("select count(*) from activations").fetchall()
    new = [{"instruction": f"Where do I find the {word}?", "label": "benign", "split": "extra"} for word in ("station", "museum")]
    file = planted_recipe.with_name("more.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in new))
    content = recipe.model_dump(exclude_unset=True)
    more = {"set": "more", "file": file, "label": "benign", "split": "extra"}
    grown = Recipe.model_validate(content | {"prompts": [*content["prompts"], more]})
    found = {one.stage: one for one in study_status(grown, lake)}
    assert found["prompts"].why == "new: more"
    assert found["activations"].why == "6 of 12 are missing: 6 SAEs on prompt set more"
    assert "new: prompt set more" in found["taxonomy"].why
    together = ingest(grown, lake)
    assert together.run_ids[0] == older
    assert len(together.run_ids) == 1 + 1 + 6
    assert {run_id: lake.record(run_id) for run_id in before} == before
    with connect(lake, "golden") as con:
        assert {text for _, text in set(con.sql(listed).fetchall()) - set(prompts)} == {row["instruction"] for row in new}
        assert set(prompts) < set(con.sql(listed).fetchall())
        assert con.execute(f"select count(*) from activations where run_id = '{older}'").fetchall() == activations
        assert con.sql("select count(*) > 0 from activations where run_id like 'activations_%'").fetchall() == [(True,)]
    with saelake.open(lake.root) as opened:
        assert answers(opened)["asr"]["n_rows"] == recorded("v1")["asr"]["n_rows"]
    assert not check(lake)


def test_storage_options_are_in_no_id_and_the_copy_by_prompt_is_a_run_of_its_own(planted_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(planted_recipe)
    sizes = {"shard_prompts": 5, "batch_tokens": 100, "prompt_major": False}
    other = recipe.model_copy(update={"name": "other", "capture": recipe.capture.model_copy(update=sizes)})
    ids = [[s.run_id for s in stage_list.specs(open_study(one)).values()] for one in (recipe, other)]
    assert ids[0] == ids[1]
    lake = Lake.create(tmp_path / "lake")
    same_sizes = other.model_copy(update={"capture": recipe.capture.model_copy(update={"prompt_major": False})})
    plain = ingest(same_sizes, lake)  # other batches may move a value by a rounding
    assert ingest(recipe, lake) == plain
    assert {r.stage for r in lake.records()} == {"prompts", "activations", "prompt_major"}
    with connect(lake, "golden") as con:
        columns = ", ".join(c.name for c in TABLES["activations"].columns if c.name != "run_id")
        rows = [
            con.execute(f"select {columns} from {n} order by all").fetchall() for n in ("activations", "activations_by_prompt")
        ]
        assert rows[0] == rows[1] != []
    assert ingest(recipe, lake, force=True) == plain
    assert not check(lake)


def test_the_schemas_version_is_no_part_of_a_runs_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = toys.ingest_spec().run_id
    for module in ("records", "runs", "schema", "schema.columns"):
        monkeypatch.setattr(f"saelake.warehouse.{module}.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    assert toys.ingest_spec().run_id == before
