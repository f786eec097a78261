"""R20: explanations of exactly these SAEs, from a server that misbehaves and from files; words and concepts by hand."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saelake import queries
from saelake.analysis.meaning import neuronpedia as module
from saelake.analysis.meaning.explanations import explain
from saelake.analysis.meaning.neuronpedia import Client
from saelake.ingest.recipe import RECIPES, Recipe, load_recipe
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests import lakes
from tests.analysis.neuronpedia_server import Neuronpedia, serving
from tests.meaning import build_meaning_lake, small_recipe

GEMMA = "gemma-2-2b/{}-gemmascope-res-65k"
PLACE = ("google/gemma-scope-2b-pt-res", "layer_11/width_65k/average_l0_70")
OTHER = ("google/gemma-scope-2b-pt-res", "layer_11/width_65k/average_l0_37")
NAMES = (f"gemma-scope-2b-pt-res/{PLACE[1]}@0123", "gemma-scope-2b-pt-res/layer_3/width_65k/average_l0_42@0123")
PUBLIC = {
    (GEMMA.format(11), 1): ["  references to bombs ", "weapons"],
    (GEMMA.format(11), 2): ["half of a character: \ud83d", ""],
    (GEMMA.format(11), 3): ["never asked for one by one"],
}
FEATURE = "/api/feature/gemma-2-2b/11-gemmascope-res-65k/1"
BATCH = "/v1/gemma-2-2b/11-gemmascope-res-65k/explanations/batch-0.jsonl.gz"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The hand-made lake, whose two SAEs pass for Gemma's of layers 11 and 3: only the first has public labels."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lakes, "SAE_NAMES", NAMES)
        return build_meaning_lake(tmp_path_factory.mktemp("explanations") / "lake")


@pytest.fixture
def lake(built: Lake, tmp_path: Path) -> Lake:
    """A copy of it, to be changed."""
    return Lake(Path(shutil.copytree(built.root, tmp_path / "lake")))


@pytest.fixture
def server() -> Iterator[Neuronpedia]:
    with serving(Neuronpedia(dict(PUBLIC), PLACE)) as served:
        yield served


def recipe(server: Neuronpedia, **changes: object) -> Recipe:
    small = small_recipe()
    explanations = small.explanations.model_copy(update={"base_url": server.url, "bulk_url": server.url, **changes})
    return small.model_copy(update={"explanations": explanations})


class Sleeper:
    """A clock that sleeping moves on, so that pauses are seen and cost no time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def client(self, timeout: float = 5.0) -> Client:
        return Client(2.0, self.sleep, lambda: self.now, timeout)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def shown(lake: Lake) -> list[Any]:
    with connect(lake) as con:
        return con.sql("select layer, feature_id, number, description from explanations order by all").fetchall()


EXPECTED = [(0, 1, 0, "references to bombs"), (0, 1, 1, "weapons"), (0, 2, 0, "half of a character: ?")]


def test_the_api_is_asked_for_the_found_features_of_labelled_saes_only(lake: Lake, server: Neuronpedia) -> None:
    sleeper = Sleeper()
    record = explain(recipe(server), lake, "neuronpedia", client=sleeper.client())
    assert shown(lake) == EXPECTED
    assert server.counts == {FEATURE: 1, FEATURE[:-1] + "2": 1}, "SAE 1 passes for layer 3, which has no labels"
    assert sleeper.pauses == [0.5], "two requests a second"
    assert explain(recipe(server), lake, "neuronpedia", client=sleeper.client()).run_id == record.run_id
    assert len(server.asked) == 2, "what is published is not asked again"
    with connect(lake) as con:
        assert con.sql("select distinct sae_id, source, explainer from explanations").fetchall() == [
            ("sae0", "Neuronpedia " + GEMMA.format(11), "gpt-4o-mini")
        ]


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "garbled", "slow"])
def test_what_passes_by_itself_is_tried_again_with_longer_pauses(lake: Lake, server: Neuronpedia, fault: str) -> None:
    server.faults[FEATURE] = [fault] * 3
    sleeper = Sleeper()
    explain(recipe(server), lake, "neuronpedia", client=sleeper.client(timeout=0.2 if fault == "slow" else 5))
    assert shown(lake) == EXPECTED
    assert server.counts[FEATURE] == 4
    assert [pause for pause in sleeper.pauses if pause >= 1] == [1, 2, 4]


def test_the_server_may_say_how_long_to_wait(lake: Lake, server: Neuronpedia) -> None:
    server.faults[FEATURE] = ["429 30", "429 999"]
    sleeper = Sleeper()
    explain(recipe(server), lake, "neuronpedia", client=sleeper.client())
    assert [pause for pause in sleeper.pauses if pause >= 1] == [30, module.LONGEST_PAUSE]


def test_a_stopped_job_continues(lake: Lake, server: Neuronpedia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelake.analysis.meaning.explanations.SHARD_FEATURES", 1)
    second = FEATURE[:-1] + "2"
    server.faults[second] = ["500"] * module.ATTEMPTS
    before = shown(lake)
    with pytest.raises(UserError, match=r"answers 500, 6 times; what came so far is kept, the same command continues"):
        explain(recipe(server), lake, "neuronpedia", client=Sleeper().client())
    assert shown(lake) == before
    explain(recipe(server), lake, "neuronpedia", client=Sleeper().client())
    assert shown(lake) == EXPECTED
    assert server.counts == {FEATURE: 1, second: module.ATTEMPTS + 1}


def test_answers_about_other_features_or_saes_are_refused(lake: Lake, server: Neuronpedia) -> None:
    server.faults[FEATURE] = ["index"]
    with pytest.raises(UserError, match=r"is about .*/91, not about .*/1: its labels would be wrong"):
        explain(recipe(server), lake, "neuronpedia", client=Sleeper().client())
    server.place = OTHER
    with pytest.raises(UserError, match=r"is of .*average_l0_37, not of .*average_l0_70"):
        explain(recipe(server), lake, "neuronpedia", client=Sleeper().client())
    with pytest.raises(UserError, match=r"labels of another SAE"):
        explain(recipe(server, sources={1: GEMMA.format(3)}), lake, "neuronpedia", client=Sleeper().client())
    with pytest.raises(UserError, match=r"names layer 7, but the study has no SAE there"):
        explain(recipe(server, sources={7: GEMMA.format(7)}), lake, "neuronpedia", client=Sleeper().client())
    server.faults[FEATURE] = ["403"]
    with pytest.raises(UserError, match=r"answers 403$"):
        explain(recipe(server), lake, "neuronpedia", client=Sleeper().client())


def test_an_unreachable_server_ends_in_a_sentence(lake: Lake, server: Neuronpedia) -> None:
    study = recipe(server, base_url="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be read: .*refused"):
        explain(study, lake, "neuronpedia", client=Sleeper().client())


def test_bulk_files_give_every_feature(lake: Lake, server: Neuronpedia) -> None:
    server.explanations[GEMMA.format(11), 0] = ["first", "second", "third", "fourth"]
    server.faults["/"] = ["500", "garbled"]
    server.faults[BATCH] = ["gzip", "cut", "503"]
    explain(recipe(server), lake, "neuronpedia-bulk", client=Sleeper().client())
    rows = shown(lake)
    assert {row[1:] for row in rows if row[1] == 3} == {(3, 0, "never asked for one by one")}
    assert sorted(row[3] for row in rows if row[1] == 0) == ["first", "fourth", "second", "third"]
    assert [row[2] for row in rows if row[1] == 0] == [0, 1, 2, 3]
    assert len(rows) == 4 + 2 + 1 + 1
    assert server.counts[BATCH] == 4


def test_bulk_rows_of_another_feature_or_past_the_width_are_refused(lake: Lake, server: Neuronpedia) -> None:
    server.explanations[GEMMA.format(11), 65_000] = ["of a wider SAE"]
    with pytest.raises(UserError, match=r"feature 65000 is past the width of .*, 4: it is another SAE"):
        explain(recipe(server), lake, "neuronpedia-bulk", client=Sleeper().client())
    server.explanations = {(GEMMA.format(12), 1): ["elsewhere"]}
    with pytest.raises(UserError, match=r"has no explanations of .*: ask its API"):
        explain(recipe(server), lake, "neuronpedia-bulk", client=Sleeper().client())


@pytest.mark.parametrize(
    ("columns", "row", "says"),
    [
        ("layer,feature_id,description", "0,1,x", "has no column sae_id.*a layer alone could mean another SAE"),
        ("sae_id,feature_id,description", "sae7,1,x", "row 1: the study has no SAE 'sae7'; it has sae0, sae1"),
        ("sae_id,feature_id,description", "sae0,4,x", "row 1: '4' is not a feature of sae0, whose features are 0 to 3"),
        ("sae_id,feature_id,description", "sae0,1, ", "row 1: its description is not text"),
        ("sae_id,feature_id,description", "", "has no rows"),
    ],
)
def test_files_of_ones_own_are_checked_before_anything_is_written(
    lake: Lake, tmp_path: Path, columns: str, row: str, says: str
) -> None:
    before = lake.current()
    file = tmp_path / "own.csv"
    file.write_text(f"{columns}\n{row}\n" if row else f"{columns}\n")
    with pytest.raises(UserError, match=says):
        explain(small_recipe(), lake, str(file))
    assert lake.current() == before


def test_a_csv_file_names_saes_by_id_or_in_full(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    with file.open("w", newline="") as stream:
        rows = [("sae0", 1, "one, with a comma", "me"), (NAMES[1], 2, "two", "")]
        csv.writer(stream).writerows([("sae_id", "feature_id", "description", "explainer"), *rows])
    explain(small_recipe(), lake, str(file))
    assert shown(lake) == [(0, 1, 0, "one, with a comma"), (1, 2, 0, "two")]


def test_words_and_concepts_by_hand(lake: Lake) -> None:
    """Explained by hand (tests/meaning.py): 0:1 about bombs and weapons, 1:0 about periods; 0:2 has no explanation."""
    with connect(lake) as con:
        words = queries.run(con, "word_counts", population="candidates").project("word, n, n_features").fetchall()
        assert words == [
            ("bombs", 2, 1), ("makers", 1, 1), ("reading", 1, 1), ("references", 1, 1), ("second", 1, 1), ("weapons", 1, 1)
        ]  # fmt: skip
        assert queries.run(con, "concepts", population="candidates").fetchall() == [
            ("harm", 1, 0.5, "0:1"), ("unexplained", 1, 0.5, "0:2")
        ]  # fmt: skip
        assert queries.run(con, "concepts", population="stage3_new").fetchall() == [("punctuation", 1, 1.0, "1:0")]
        about = queries.run(con, "described", population="candidates").project("feature_id, about, description").fetchall()
        assert about == [
            (1, "explanations", "References to bombs and the bombs' makers | a second reading: weapons"), (2, "tokens", "b1")
        ]  # fmt: skip
        tokens = queries.run(con, "described", population="critical", about="tokens").project("description").fetchall()
        assert tokens == [("b0 b4 a1",)]


def test_patterns_that_are_none_are_refused(tmp_path: Path) -> None:
    text = (RECIPES / "organism.toml").read_text().replace("../", f"{RECIPES.parent}/")
    file = tmp_path / "own.toml"
    file.write_text(text + '\n[concepts.patterns]\nharm = ["bomb", "(?=weapon)"]\n')
    with pytest.raises(UserError, match=r"the pattern '\(\?=weapon\)' of harm is not a regular expression"):
        load_recipe(file)


def test_what_is_published_is_sound(lake: Lake) -> None:
    mine = ("taxonomy", "populations", "concepts", "explanations")
    assert [found for found in check(lake) if found.run_id.startswith(mine)] == []
