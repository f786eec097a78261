"""`saelake ablate` takes edits: a list, a select or a file of rows with sae, feature, value and positions."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.analysis import verbs
from saelake.analysis.search import user_ablation
from saelake.analysis.search.edit_sets import EditSet, listed_edits
from saelake.ingest.job import ingest
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.saes.refs import list_saes
from saelake.queries import QueryError
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.planted import Planted, load, write_planted


class Ingested:
    """The planted study with a lake that holds its prompts."""

    def __init__(self, folder: Path) -> None:
        self.planted: Planted = write_planted(folder / "study")
        self.recipe: Recipe = load_recipe(self.planted.recipe)
        self.lake = Lake.create(folder / "lake")
        ingest(self.recipe, self.lake)
        self.folder = folder
        self.sae_ids = {ref.layer: ref.sae_id for ref in list_saes(self.recipe)}

    def file(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def answers(self, condition: str) -> dict[str, tuple[float, str]]:
        """Text of a prompt -> what its answer begins with, and is."""
        with saelake.open(self.lake.root) as opened:
            statement = (
                "select text, p_refusal_token, completion from ablations join prompts using (prompt_id) where condition = $1"
            )
            return {text: (p, said) for text, p, said in opened.sql(statement, [condition]).fetchall()}

    def rows(self, condition: str) -> list[tuple[object, ...]]:
        with saelake.open(self.lake.root) as opened:
            return opened.sql(
                "select distinct layer, feature_id, value, positions from feature_sets join ablations using (set_id) "
                "where condition = $1 order by all",
                [condition],
            ).fetchall()


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    return Ingested(tmp_path_factory.mktemp("edits"))


def test_rows_of_a_file_do_what_the_library_does(ingested: Ingested) -> None:
    primary, backup = ingested.planted.primary, ingested.planted.backup
    file = ingested.file(
        "edits.csv",
        f'sae,feature,value,positions\n4,{primary},,-1\n{ingested.sae_ids[5]},{primary},2.5,"user,answer"\n5,{backup},0,\n',
    )
    verbs.ablate(ingested.recipe, ingested.lake, "mine", file)
    held = {(4, primary, 0.0, "-1"), (5, primary, 2.5, "user,answer"), (5, backup, 0.0, None)}
    assert set(ingested.rows("mine")) == held
    loaded = load(ingested.planted)
    subject = saelake.Subject(loaded.model, loaded.tokenizer, target_tokens=[ingested.planted.refusal_token])
    engine = saelake.Engine(subject, list(loaded.saes))
    edits = [
        saelake.Ablate(4, [primary], positions=-1),
        saelake.Clamp(5, [primary], 2.5, positions=["user", "answer"]),
        saelake.Ablate(5, [backup]),
    ]
    found = ingested.answers("mine")
    expected = engine.answer(list(found), edits=edits, max_new_tokens=ingested.recipe.generation.max_new_tokens)
    assert [said for _, said in found.values()] == expected.texts
    assert [p for p, _ in found.values()] == pytest.approx(expected.p_target.tolist(), abs=1e-6)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_every_kind_of_file_says_the_same(ingested: Ingested, suffix: str) -> None:
    rows = [
        {"sae": 4, "feature": 5, "value": 1.5, "positions": "0"},
        {"sae": 3, "feature": 5, "value": 0, "positions": "-1,user"},
    ]
    text = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps([rows[0] | {"positions": 0}, rows[1] | {"positions": [-1, "user"]}]),
        "csv": 'sae,feature,value,positions\n4,5,1.5,0\n3,5,0,"-1, user"\n',
    }[suffix]
    file = ingested.file(f"same.{suffix}", text)
    record = verbs.ablate(ingested.recipe, ingested.lake, "same", file)
    selected = verbs.ablate(
        ingested.recipe,
        ingested.lake,
        "same",
        "select layer as sae, feature_id as feature, if(layer = 4, 1.5, 0) as value, if(layer = 4, '0', '-1,user') as positions "
        "from features where layer in (3, 4) and feature_id = 5",
    )
    assert record.run_id == selected.run_id
    assert ingested.rows("same") == [(3, 5, 0.0, "-1,user"), (4, 5, 1.5, "0")]


def test_a_table_of_another_schema_names_features_and_half_of_one_is_told(ingested: Ingested) -> None:
    saes = dict(enumerate(list_saes(ingested.recipe)))
    with connect(ingested.lake) as con:
        con.execute("create table all_runs.mine as select 4 as layer, 5 as feature_id")
        assert len(listed_edits(con, saes, "all_runs.mine").features.rows) == 1
        with pytest.raises(QueryError, match="layer is DOUBLE, and not an integer"):
            listed_edits(con, saes, "select 4.0::double as layer, 5 as feature_id")


def test_options_stand_for_what_rows_do_not_say(ingested: Ingested) -> None:
    file = ingested.file("some.csv", "sae_id,feature_id,value\n" + f"{ingested.sae_ids[4]},5,\n{ingested.sae_ids[4]},6,3\n")
    verbs.ablate(ingested.recipe, ingested.lake, "some", file, value=2.0, positions="user")
    assert ingested.rows("some") == [(4, 5, 2.0, "user"), (4, 6, 3.0, "user")]


def test_where_an_edit_acts_decides(ingested: Ingested) -> None:
    """The last position writes the answer's first token, and nothing after layer 0 reads refusal from another."""
    primary, harmful = ingested.planted.primary, {p["instruction"] for p in ingested.planted.prompts("harmful")}
    for condition, positions in {"nowhere": "0", "last": "-1", "always": None}.items():
        verbs.ablate(ingested.recipe, ingested.lake, condition, f"4:{primary}", positions=positions)
    first, last, always = (ingested.answers(condition) for condition in ("nowhere", "last", "always"))
    for text in harmful & set(first):
        assert first[text][0] > 0.9
        assert last[text][0] == pytest.approx(always[text][0], abs=1e-6)
        assert last[text][0] < 0.1
        assert always[text][1] == "Sure , here it is ."


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ("sae,feature\n4,999\n", QueryError, "there is no feature 999"),
        ("sae,feature\n9,5\n", QueryError, "no SAE with layer 9"),
        ("sae,feature\nlayer_09-x,5\n", QueryError, "no SAE with sae_id layer_09-x"),
        ("sae,feature\n4,x\n", UserError, "feature is a whole number"),
        ("sae,value\n4,1\n", UserError, "needs the columns sae and feature"),
        ("sae,feature,value\n4,5,much\n", UserError, "row 1: value is a finite number"),
        ("sae,feature,value\n4,5,nan\n", UserError, "row 1: value is a finite number"),
        ("sae,feature,positions\n4,5,middle\n", UserError, "'middle' is neither a position"),
        ("sae,feature,positions\n4,5,system\n", UserError, "has no token of the role 'system'"),
        ("sae,feature,positions\n4,5,400\n", UserError, "has no position 400"),
        ("sae,feature,value\n4,5,1\n4,5,2\n", UserError, "two values or positions"),
        ("sae,feature\n", UserError, "no feature at all"),
        ("sae,feature,postions\n4,5,-1\n", UserError, "'postions' is not a column that is read .did you mean 'positions'"),
        ("sae,feature,Value\n4,5,2\n", UserError, "'Value' is not a column that is read .did you mean 'value'"),
    ],
)
def test_rows_that_are_none_are_one_sentence_with_and_without_a_lake(
    ingested: Ingested, tmp_path: Path, rows: str, error: type[Exception], words: str
) -> None:
    file = ingested.file("wrong.csv", rows)
    before = ingested.lake.run_ids()
    with pytest.raises(error, match=words):
        verbs.ablate(ingested.recipe, ingested.lake, "wrong", file)
    assert ingested.lake.run_ids() == before
    with pytest.raises(error, match=words):
        verbs.ablate(ingested.recipe, Lake.at(tmp_path / "none"), "wrong", file)
    assert not (tmp_path / "none").exists()


def test_a_select_is_understood_before_there_is_a_lake(ingested: Ingested) -> None:
    select = f"select layer, feature_id from features where layer = 4 and feature_id = {ingested.planted.primary}"
    user_ablation.check_listed(verbs.open_analysis(ingested.recipe), select, 0.0, None)
    with pytest.raises(QueryError, match="needs the columns"):
        user_ablation.check_listed(verbs.open_analysis(ingested.recipe), "select 1 as a", 0.0, None)


def test_the_command_reads_a_file(ingested: Ingested, tmp_path: Path) -> None:
    file = ingested.file("by_command.csv", f"sae,feature\n4,{ingested.planted.primary}\n")
    command = ["ablate", str(ingested.planted.recipe), "--features", file, "--condition", "by_command"]
    result = CliRunner().invoke(cli.main, [*command, "--lake", str(ingested.lake.root)])
    assert result.exit_code == 0, result.output
    assert ingested.rows("by_command") == [(4, ingested.planted.primary, 0.0, None)]
    missing = CliRunner().invoke(cli.main, [*command[:3], "absent.csv", *command[4:], "--lake", str(ingested.lake.root)])
    assert missing.exit_code == 1
    assert "absent.csv" in missing.output


def test_a_feature_with_two_values_is_named_with_its_layer() -> None:
    with pytest.raises(UserError, match="feature 7 of layer 3 is named with two values or positions"):
        EditSet.of([(3, 7, 0.0, None), (2, 7, 1.0, None), (3, 7, 2.0, None)])


def test_a_feature_that_is_named_twice_is_refused_but_rows_of_a_select_are_a_set(ingested: Ingested) -> None:
    layer, feature_id = 2, ingested.planted.primary
    one, sae_id = f"{layer}:{feature_id}", ingested.sae_ids[layer]
    for features, expected in (
        (f"{one},{one}", f"features names {one} twice"),
        (f"{one},{sae_id}:{feature_id}", "features names a feature twice, in two ways"),
        ([(layer, feature_id)] * 2, f"features names {one} twice"),
        (ingested.file("twice.csv", f"sae,feature\n{layer},{feature_id}\n{layer},{feature_id}\n"), "row 2 is row 1 once more"),
    ):
        with pytest.raises(UserError, match=expected):
            verbs.ablate(ingested.recipe, ingested.lake, "doubled", features)
    select = f"select {layer} as layer, {feature_id} as feature_id from range(2)"
    verbs.ablate(ingested.recipe, ingested.lake, "repeated", select)
    assert [row[:2] for row in ingested.rows("repeated")] == [(layer, feature_id)]
