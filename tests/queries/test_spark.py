"""The questions on Spark give the rows that they give on DuckDB, from the embedded study's lake and over many more rows."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import saelake
from saelake import cli, queries
from saelake.queries.spark import ENDED, MEMORY, session, translate
from saelake.warehouse.lake import Lake
from saelake.warehouse.synth import Shape, synthesize
from tests.conftest import ROOT
from tests.golden import FOLDER as GOLDEN
from tests.lakes import build_lake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytest.importorskip("pyspark", reason="the extra spark is not installed: pip install 'saelake[spark]'")
pytest.importorskip("sqlglot", reason="the extra spark is not installed: pip install 'saelake[spark]'")
if not shutil.which("java") and "JAVA_HOME" not in os.environ:
    pytest.skip("Spark needs Java, which is not found: apt-get install openjdk-17-jre-headless", allow_module_level=True)

QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Java compiles what runs for hours; these questions are over sooner."""
SMALL = ("spark.default.parallelism=2", "spark.sql.shuffle.partitions=1", "spark.sql.adaptive.enabled=false")
"""Spark cuts into parts what fits in one, and plans the rest anew after each."""
CONF = " ".join(f"--conf {setting}" for setting in SMALL)
os.environ.setdefault("PYSPARK_SUBMIT_ARGS", f"--driver-java-options '{QUICK}' {CONF} pyspark-shell")

NEEDED = {
    "features": "select sae_id, feature_id from features where layer = 4 order by n_prompts desc, feature_id limit 20",
    "prompts": "select list(prompt_id order by prompt_id)[:12] from prompts where label = 'harmful'",
    "prompt": "select min(prompt_id) from prompts where label = 'harmful'",
    "text": "select min(sae_id) from saes",
    "feature": "select min(feature_id) from features",
    "sae": "select min(sae_id) from saes",
    "layer": "select min(layer) from saes",
    "judge": "select 'first_token'",
}
NOT_ON_SPARK = {
    "backends",
    "runs",
    "compare_runs",
    "concepts",
    "feature_search",
    "study_scores",
    "taxonomy_combinations",
}
"""None of them reads this study's activations or ablations: they are about run records, or what is said of features."""
ON_SPARK = sorted({*queries.names(), *queries.names_of_stages()} - NOT_ON_SPARK)
WITHOUT_ROWS = {"word_counts", "backup_features", "atlas_pairs", "atlas_rankings", "atlas_scores", "single_effects", "sweeps"} | {
    "recoveries",
    "recovery_sites",
    "answer_features",
}
"""On the embedded lake: nobody has explained its features, nothing that wakes is a backup, there is no atlas, audit or sweep,
and no activation on an answer."""
WITH_ROWS: dict[str, dict[str, Any]] = {
    "dormant": {"features": "select distinct layer, feature_id from wakings order by all limit 40"},
    "near_duplicates": {
        "features": "select distinct layer, feature_id from decoder_cosines order by all limit 60",
        "min_cosine": 0.3,
    },
    "neighbours": {"layer": 4, "feature_id": 256, "max_q": 1.0},
    "steering_features": {"features_are": "critical"},
    "features_on_token": {"token": "beach"},
    "promoting": {"token": "I"},
    "atlas_prompts": {"split": "test"},
    "find_prompts": {"words": "how to"},
}
"""Values for which the embedded lake has an answer, where it has none by default."""
OTHER_VALUES: dict[str, dict[str, Any]] = {
    "asr": {"conditions": "none,random", "k": "1,4"},
    "top_samples": {"bos": True, "per_prompt": False, "window": 2},
    "new_features": {"by": "weight", "k": 5},
    "firing_on_tokens": {"exclude_layers": "0,1", "k": 3},
}
"""Values beside the defaults that lead through other parts of a statement."""


@pytest.fixture(scope="module")
def lake(organism_lake: Path) -> Iterator[saelake.OpenLake]:
    with saelake.open(organism_lake) as opened:
        yield opened
    _end(session())


def _end(spark: "SparkSession") -> None:
    """Java goes too, which would hold its four gigabytes beside all tests that follow."""
    gateway = spark.sparkContext._gateway
    spark.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()  # what it waits for
    gateway.proc.wait(60)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[saelake.OpenLake]:
    """200,000 activations, and none of the tables of an analysis."""
    made = Lake.create(tmp_path_factory.mktemp("synthetic") / "lake")
    synthesize(made, Shape.of_rows(200_000, n_layers=6, width=16_384))
    with saelake.open(made.root) as opened:
        yield opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[saelake.OpenLake]:
    """A lake that has nothing but an ingest run and its first ablations."""
    with saelake.open(build_lake(tmp_path_factory.mktemp("small") / "lake").root) as opened:
        yield opened


def _required(lake: saelake.OpenLake, name: str) -> dict[str, Any]:
    """Values for the parameters without a default."""
    values = {}
    for parameter in (p for p in queries.load(name).parameters if p.required):
        select = NEEDED[parameter.type]
        values[parameter.name] = select if parameter.type == "features" else lake.sql(select).fetchall()[0][0]
    return values


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(ours) and math.isnan(theirs))
    return bool(ours == theirs)


def _assert_same(lake: saelake.OpenLake, name: str, others: dict[str, Any]) -> int:
    """Asks both engines; returns how many rows there are."""
    values = _required(lake, name) | others
    here, there = lake.query(name, **values), lake.query(name, engine="spark", **values)
    assert (here.columns, here.types) == (there.columns, there.types)
    rows, theirs = here.fetchall(), there.fetchall()
    assert len(rows) == len(theirs)
    assert [(a, b) for a, b in zip(rows, theirs, strict=True) if not all(map(_same, a, b))] == []
    return len(rows)


@pytest.mark.parametrize("name", ON_SPARK)
def test_a_question_has_the_same_rows_on_spark(lake: saelake.OpenLake, name: str) -> None:
    n_rows = _assert_same(lake, name, WITH_ROWS.get(name, {}))
    assert n_rows or name in WITHOUT_ROWS, "nothing is compared"
    if name in OTHER_VALUES:
        _assert_same(lake, name, OTHER_VALUES[name])


def test_questions_have_the_same_rows_over_many_more_activations(synthetic: saelake.OpenLake) -> None:
    assert synthetic.sql("select count(*) > 190_000 from activations").fetchall() == [(True,)]
    asked = [name for name in ON_SPARK if synthetic.query(name, **_required(synthetic, name)).fetchmany(1)]
    answered = {name for name in asked if _assert_same(synthetic, name, {})}
    assert answered >= {"cofiring", "features", "firing_on_tokens", "histogram", "prompt", "random_active"}
    assert answered >= {"sparse", "taxonomy_counts", "top_samples"}


@pytest.mark.parametrize("name", ["fm_input", "fm_partners", "direction_by_layer", "losses", "new_features", "stage3_coverage"])
def test_a_question_about_a_stage_that_has_not_run_is_answered_too(small: saelake.OpenLake, name: str) -> None:
    """By no rows: an empty table must not be an error."""
    values: dict[str, Any] = {"features": [(0, 1)]} if name == "fm_partners" else {}
    assert small.query(name, engine="spark", **values).fetchall() == small.query(name, **values).fetchall() == []


def test_files_of_an_older_version_are_read_too(tmp_path: Path) -> None:
    """Which lack columns that tables have now, and hold some that are gone."""
    with saelake.open(shutil.copytree(GOLDEN / "v1" / "lake", tmp_path / "lake")) as old:
        assert _assert_same(old, "asr", {}) > 100


def test_both_engines_answer_of_what_the_lake_showed_when_it_was_opened(tmp_path: Path) -> None:
    """Not, on Spark alone, of a study that came to it later too."""
    with saelake.open(build_lake(tmp_path / "lake").root) as opened:
        build_lake(tmp_path / "lake", "later", variant=1)
        assert _assert_same(opened, "asr", {})


def test_the_command_asks_spark(lake: saelake.OpenLake, organism_lake: Path) -> None:
    asked = ["query", "top_samples", "--features", "4:256", "--format", "csv", "--lake", str(organism_lake)]
    here, there = (CliRunner().invoke(cli.main, [*asked, "--engine", engine]) for engine in ("duckdb", "spark"))
    assert here.exit_code == there.exit_code == 0, there.output
    assert here.stdout == there.stdout != ""


@pytest.mark.parametrize("name", sorted(NOT_ON_SPARK - {"compare_runs", "study_scores"}))
def test_what_spark_cannot_answer_is_one_sentence(organism_lake: Path, name: str) -> None:
    result = CliRunner().invoke(cli.main, ["query", name, "--engine", "spark", "--lake", str(organism_lake)])
    assert result.exit_code == 1
    assert re.search(rf"Spark cannot answer {name}: .*\w+.*; ask DuckDB", result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1


END_IT = """
import os, signal, sys
import pyspark, saelake
from saelake import queries

with saelake.open(sys.argv[1]) as lake:
    lake.query("asr", engine="spark")
    print(pyspark.SparkContext.getOrCreate()._jvm.java.lang.Runtime.getRuntime().maxMemory())
    os.kill(pyspark.SparkContext._gateway.proc.pid, signal.SIGKILL)
    for _ in range(2):
        try:
            lake.query("asr", engine="spark")
        except queries.QueryError as error:
            print(error)
"""


def test_a_spark_that_has_ended_is_one_sentence_and_leaves_nothing_where_it_was_started(
    organism_lake: Path, tmp_path: Path
) -> None:
    """Java that is out of memory ends; in a process of its own, since nothing asks that Spark again."""
    command, here = [sys.executable, "-c", END_IT, str(organism_lake)], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    memory, first, second = done.stdout.splitlines()
    assert 0.8 < int(memory) / (int(MEMORY.rstrip("g")) << 30) <= 1  # one of the spaces of the young ones is not counted
    assert first == second == ENDED


@pytest.mark.parametrize(
    ("duckdb_sql", "spark_sql"),
    [
        ("select any_value(a order by b) from t", "SELECT MIN_BY(`a`, `b`) FROM `t`"),
        ("select epoch(a) from t", "SELECT UNIX_MICROS(`a`) / 1e6 FROM `t`"),
        ("select a from t order by a limit (5)::bigint", "SELECT `a` FROM `t` ORDER BY `a` NULLS LAST LIMIT (5)"),
    ],
)
def test_translations_that_sqlglot_does_not_make(duckdb_sql: str, spark_sql: str) -> None:
    assert translate(duckdb_sql) == (spark_sql, ["t"])


def test_a_view_of_every_run_is_another_than_that_of_the_current_ones() -> None:
    read = translate("select a.run_id from all_runs.saes as a join saes as b on b.sae_id = a.sae_id")
    joined = "`all_runs_saes` AS `a` JOIN `saes` AS `b` ON `b`.`sae_id` = `a`.`sae_id`"
    assert read == (f"SELECT `a`.`run_id` FROM {joined}", ["all_runs.saes", "saes"])
