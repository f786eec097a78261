"""A lake grows: a prompt set, an SAE or a second study compute what is new alone, and give what a whole ingest gives."""

import json
from pathlib import Path
from typing import Any

import pytest

import saelake
from saelake import queries
from saelake.analysis import stage_list
from saelake.analysis.stage_status import StageStatus
from saelake.analysis.study_status import study_status
from saelake.ingest import compiled, shards
from saelake.ingest.capture import capture
from saelake.ingest.job import ingest
from saelake.ingest.recipe import Recipe
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.study import open_study
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.housekeeping import drop, gc
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.runs import Plan, ensure_run
from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from tests.ingest.small_study import lake_in, write_study

MORE = ["Where is the small house?", "A story of the sea.", "How do I help?"]
GROWN = ("prompts", "tokens", "saes", "features", "activations")


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(prompts, sites) of every capture: what went through the model, and at how many places it was looked at."""
    seen: list[tuple[int, int]] = []

    def counted(subject: Any, prompts: Any, sites: Any, *args: Any, **options: Any) -> Any:
        seen.append((len(prompts), len(sites)))
        return capture(subject, prompts, sites, *args, **options)

    monkeypatch.setattr(shards, "capture", counted)
    return seen


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return write_study(tmp_path, "llama", capture={"shard_prompts": 3})


def with_set(recipe: Recipe, name: str = "more", split: str = "extra", first: bool = False) -> Recipe:
    """The recipe with one more prompt set."""
    assert recipe.prompts[0].file
    file = Path(recipe.prompts[0].file).with_name(f"{name}.jsonl")
    texts = MORE if name == "more" else [f"{text} And why?" for text in MORE]
    file.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
    content = recipe.model_dump(exclude_unset=True)
    one = {"set": name, "file": file, "label": "benign", "split": split}
    sets = [one, *content["prompts"]] if first else [*content["prompts"], one]
    return Recipe.model_validate(content | {"prompts": sets})


def with_layers(recipe: Recipe, *layers: int) -> Recipe:
    return recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"layers": layers})})


def change(recipe: Recipe, section: str, **fields: Any) -> Recipe:
    """The recipe with other fields in a section."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=fields)})


def shown(lake: Lake, name: str | None = None) -> dict[str, list[Any]]:
    """All rows of what plain table names show."""
    with connect(lake, name) as con:
        return {table: con.execute(f"select * from {table} order by all").fetchall() for table in GROWN}


def states(recipe: Recipe, lake: Lake) -> dict[str, StageStatus]:
    return {one.stage: one for one in study_status(recipe, lake)}


@pytest.mark.parametrize("first", [False, True])
def test_a_new_set_computes_its_prompts_alone(recipe: Recipe, tmp_path: Path, passed: list[tuple[int, int]], first: bool) -> None:
    lake, grown = lake_in(tmp_path), with_set(recipe, first=first)
    before = ingest(recipe, lake)
    ids = shown(lake)["prompts"]
    passed.clear()
    found = states(grown, lake)
    assert (found["prompts"].state, found["prompts"].why) == ("to do", "new: more")
    assert found["activations"].why == "3 of 6 are missing: 3 SAEs on prompt set more"
    together = ingest(grown, lake)
    assert passed == [(len(MORE), 3)]
    assert set(before.run_ids) < set(together.run_ids)
    assert set(ids) < set(shown(lake)["prompts"]), "the prompts that were there keep their ids"
    passed.clear()
    assert ingest(grown, lake) == together
    assert passed == []
    whole = Lake.create(tmp_path / "whole")
    assert set(ingest(grown, whole).run_ids) == set(together.run_ids)
    assert shown(whole) == shown(lake)
    assert not check(lake)


def test_a_new_sae_computes_what_fires_in_it_alone(recipe: Recipe, tmp_path: Path, passed: list[tuple[int, int]]) -> None:
    recipe, lake = with_set(recipe), lake_in(tmp_path)
    ingest(with_layers(recipe, 0, 2), lake)
    assert sum(n for n, _ in passed) == 8 + len(MORE), "one pass for all SAEs"
    assert {n for _, n in passed} == {2}
    passed.clear()
    found = states(recipe, lake)
    assert found["prompts"].state == "done"
    assert found["activations"].why.startswith("2 of 6 are missing: SAE layer_01-")
    assert found["activations"].why.endswith(" on 2 prompt sets")
    ingest(recipe, lake)
    assert sum(n for n, _ in passed) == 8 + len(MORE)
    assert {n for _, n in passed} == {1}
    whole = Lake.create(tmp_path / "whole")
    ingest(recipe, whole)
    assert shown(whole) == shown(lake)
    assert not check(lake)


def test_a_set_that_two_studies_have_is_one_run(recipe: Recipe, tmp_path: Path, passed: list[tuple[int, int]]) -> None:
    lake, other = lake_in(tmp_path), with_set(recipe).model_copy(update={"name": "other"})
    ingest(recipe, lake)
    passed.clear()
    ingest(other, lake)
    assert passed == [(len(MORE), 3)]
    assert len(shown(lake, "small")["prompts"]) == 8
    assert len(shown(lake, "other")["prompts"]) == 8 + len(MORE) == len(shown(lake)["prompts"])
    with connect(lake) as con:  # over both studies each feature is still one row
        assert con.execute("select count(*) = count(distinct (sae_id, feature_id)) from features").fetchall() == [(True,)]
    share(lake, tmp_path / "set", Choice(recipe="other"))
    theirs = Lake.create(tmp_path / "theirs")
    assert add(theirs, tmp_path / "set").studies == ("other",)
    assert shown(theirs) == shown(lake, "other")
    share(lake, tmp_path / "both")
    both = Lake.create(tmp_path / "both_lake")
    assert add(both, tmp_path / "both").studies == ("other", "small")
    assert [shown(both, name) for name in ("small", "other")] == [shown(lake, name) for name in ("small", "other")]
    assert not check(both)


def test_statistics_over_several_sets_are_those_of_all_their_rows(recipe: Recipe, tmp_path: Path) -> None:
    lake = lake_in(tmp_path)
    ingest(with_set(recipe), lake)
    with connect(lake) as con:
        assert con.execute("""
            with counted as (
                select
                    a.sae_id, a.feature_id, count(*) as n_tokens, count(distinct a.prompt_id) as n_prompts,
                    avg(a.activation) as mean_activation, max(a.activation) as max_activation
                from activations as a join tokens as t using (prompt_id, pos)
                where t.role <> 'bos'
                group by all
            )
            select bool_and(f.n_tokens = c.n_tokens and f.n_prompts = c.n_prompts and f.max_activation = c.max_activation
                and abs(f.mean_activation - c.mean_activation) < 1e-6), count(*) > 50
            from features as f join counted as c using (sae_id, feature_id)
        """).fetchall() == [(True, True)]
        assert con.execute("""
            select bool_and(abs(s.measured_l0 - f.n / t.n) < 1e-5 and s.n_tokens = t.n), count(*)
            from saes as s
            join (select sae_id, sum(n_tokens) as n from features group by sae_id) as f using (sae_id)
            cross join (select count(*) as n from tokens where role <> 'bos') as t
        """).fetchall() == [(True, 3)]
        layer = con.execute("select * from features_of(1) order by all").fetchall()
        assert layer == con.execute("select * from features where layer = 1 order by all").fetchall()


def test_growth_that_is_stopped_goes_on_with_what_is_missing(
    recipe: Recipe, tmp_path: Path, passed: list[tuple[int, int]]
) -> None:
    lake, grown = lake_in(tmp_path), with_set(recipe)

    class Stopped(Quiet):
        def __init__(self, after: int) -> None:
            self.left = after

        def advance(self, n: int = 1, rows: int = 0) -> None:
            self.left -= n
            if not self.left:
                raise KeyboardInterrupt

    ingest(recipe, lake)
    before = shown(lake)
    with pytest.raises(KeyboardInterrupt):
        ingest(grown, lake, progress=Stopped(2))  # landed for two of three SAEs
    assert shown(lake) == before
    assert states(grown, lake)["activations"].why == "2 shards landed"
    passed.clear()
    ingest(grown, lake)
    assert passed == [(len(MORE), 1)]
    whole = Lake.create(tmp_path / "whole")
    ingest(grown, whole)
    assert shown(whole) == shown(lake)
    assert not check(lake)


def test_another_size_of_shards_in_between_brings_no_row_twice(recipe: Recipe, tmp_path: Path) -> None:
    lake = lake_in(tmp_path)

    class Stopped(Quiet):
        def advance(self, n: int = 1, rows: int = 0) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(recipe, lake, progress=Stopped())
    ingest(recipe.model_copy(update={"capture": recipe.capture.model_copy(update={"shard_prompts": 2})}), lake)
    assert len(shown(lake)["prompts"]) == 8
    assert not check(lake)


def test_a_run_that_is_dropped_is_computed_again_alone(recipe: Recipe, tmp_path: Path, passed: list[tuple[int, int]]) -> None:
    lake, grown = lake_in(tmp_path), with_set(recipe)
    before, rows = ingest(grown, lake), shown(lake)
    drop(lake, before.run_ids[-1])
    assert len(lake.current()["small", "activations"]) == 5
    gc(lake, older_than_seconds=0)
    passed.clear()
    assert ingest(grown, lake).content_hash == before.content_hash
    assert passed == [(len(MORE), 1)]
    assert shown(lake) == rows
    assert not check(lake)


def test_a_set_that_leaves_the_recipe_is_shown_no_more_and_kept(
    recipe: Recipe, tmp_path: Path, passed: list[tuple[int, int]]
) -> None:
    lake, grown = lake_in(tmp_path), with_set(recipe)
    alone = ingest(recipe, lake)
    rows = shown(lake)
    ingest(grown, lake)
    passed.clear()
    assert ingest(recipe, lake) == alone
    assert shown(lake) == rows
    ingest(grown, lake)
    assert passed == []


def test_a_changed_setting_is_told(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_in(tmp_path)
    ingest(recipe, lake)
    found = states(change(recipe, "capture", round="bfloat16"), lake)
    assert found["prompts"].state == "done"
    assert found["activations"].why == "3 of 3 are missing: 3 SAEs on prompt set small; changed: round"
    declared = states(change(recipe, "saes", l0=3.0), lake)
    assert declared["activations"].why == "3 of 3 are missing: 3 SAEs on prompt set small; changed: declared L0"
    labelled = states(change(recipe, "labels", target="benign", control="harmful"), lake)
    assert labelled["prompts"].why == "changed: small (labels)"
    monkeypatch.setattr(compiled, "check_compiles", lambda *_: None)  # as on a CUDA device
    found = states(change(recipe, "compute", compile=True), lake)
    assert found["activations"].why == "3 of 3 are missing: 3 SAEs on prompt set small; changed: compiled"
    assert labelled["activations"].why == "3 of 3 are missing: 3 SAEs on prompt set small; changed: run of prompts"
    file = Path(str(recipe.prompts[0].file))
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    assert states(recipe, lake)["prompts"].why == "changed: small (its prompts)"


def first(recipe: Recipe) -> Recipe:
    """The recipe with one more set, two of its SAEs, and no judge but the oracle."""
    return change(with_layers(with_set(recipe), 0, 2), "verdicts", judges=("first_token",))


@pytest.fixture
def done(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake in which every stage of `first` is done: with empty tables, for no reason."""
    monkeypatch.setattr(queries, "reasons", lambda con: {})
    lake, grown = lake_in(tmp_path), first(recipe)
    ingest(grown, lake)
    nothing = Plan(["all"], lambda missing: ((name, []) for name in missing), ())
    for spec in stage_list.specs(open_study(grown), lake=lake).values():
        ensure_run(lake, spec, nothing)
    assert {one.state for one in states(grown, lake).values()} == {"done"}
    return lake


def test_status_names_what_is_new_for_each_later_stage(recipe: Recipe, done: Lake) -> None:
    base = first(recipe)
    found = states(with_set(base, "tested", split="test"), done)
    assert found["direction"].state == "done", "which reads other splits"
    assert found["baseline"].why == found["separation"].why == "new: prompt set tested"
    assert found["minimal"].why == "new: prompt set tested; changed: run of baseline, run of candidates"
    (sae_id,) = [ref.sae_id for ref in list_saes(recipe) if ref.layer == 1]
    found = states(with_layers(base, 0, 1, 2), done)
    assert found["baseline"].state == "done"
    assert found["alignments"].why == f"new: SAE {sae_id}"
    found = states(with_set(with_layers(base, 0, 1, 2), "tested"), done)
    assert found["separation"].why == f"new: prompt set tested, SAE {sae_id}"
    judged = change(base, "verdicts", judges=("first_token", "phrases"))
    later = {name: one.why for name, one in states(judged, done).items() if one.state != "done"}
    assert later == {"verdicts_phrases": "never computed"}


def test_status_names_what_is_no_more_and_what_has_changed(recipe: Recipe, done: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    base = first(recipe)
    (sae_id,) = [ref.sae_id for ref in list_saes(recipe) if ref.layer == 2]
    fewer = with_layers(recipe, 0).model_copy(update={"verdicts": base.verdicts})
    assert states(fewer, done)["separation"].why == f"no more: prompt set more, SAE {sae_id}"
    other = change(base, "verdicts", judges=("phrases",), oracle="phrases", control_oracle="phrases")
    assert states(other, done)["baseline"].why.startswith("changed: oracle (phrases, was first_token)")
    rounded = states(change(base, "capture", round="bfloat16"), done)
    assert rounded["separation"].why == "changed: activations (round)"
    with monkeypatch.context() as on_cuda:
        on_cuda.setattr(compiled, "check_compiles", lambda *_: None)
        assert (
            states(change(base, "compute", compile=True), done)["separation"].why == "changed: compiled, activations (compiled)"
        )
    assert rounded["baseline"].why == "changed: capture.round"
    assert states(change(base, "generation", max_new_tokens=3), done)["direction"].why == "changed: generation.max_new_tokens"
    assert states(change(base, "compute", seed=7), done)["direction"].why == "changed: seed"
    assert states(change(base, "model", refusal_tokens=("help",)), done)["direction"].why == "changed: refusal_tokens"
    turned = base.model_copy(update={"prompts": base.prompts[::-1]})
    assert states(turned, done)["separation"].why == "changed: the order of prompt sets or SAEs"
    assert base.prompts[1].file
    Path(base.prompts[1].file).write_text('{"instruction": "Where is the sea, then?"}\n')
    found = states(base, done)
    assert found["separation"].why == "changed: prompt set more (its prompts)"
    assert found["baseline"].state == "done"


def test_later_stages_depend_on_the_sets_and_saes_that_they_read(recipe: Recipe) -> None:
    def run_ids(one: Recipe) -> dict[str, str]:
        return {name: spec.run_id for name, spec in stage_list.specs(open_study(one)).items()}

    before = run_ids(recipe)
    unread = run_ids(with_set(recipe, split="extra"))
    reads_all = {"fm", "probe", "stage3", "stage3_probe", "populations", "taxonomy", "separation", "concepts", "statistics"}
    assert {name for name in before if before[name] != unread[name]} - reads_all <= {
        name for name in before if name.startswith("verdicts_")
    }
    tested = run_ids(with_set(recipe, split="test"))
    assert tested["direction"] == before["direction"], "which is made from other splits"
    assert tested["baseline"] != before["baseline"]
    fewer = run_ids(with_layers(recipe, 0, 2))
    assert [fewer[name] for name in ("direction", "baseline")] == [before[name] for name in ("direction", "baseline")]
    assert fewer["candidates"] != before["candidates"]


def test_the_copy_by_prompt_of_a_grown_study_is_of_all_its_runs(recipe: Recipe, tmp_path: Path) -> None:
    lake, grown = lake_in(tmp_path), with_set(recipe)
    ingest(recipe, lake)
    ingest(grown.model_copy(update={"capture": grown.capture.model_copy(update={"prompt_major": True})}), lake)
    names = ", ".join(c.name for c in TABLES["activations"].columns if c.name != "run_id")
    with saelake.open(lake.root) as opened:
        rows = [opened.sql(f"select {names} from {n} order by all").fetchall() for n in ("activations", "activations_by_prompt")]
    assert rows[0] == rows[1] != []
    assert not check(lake)
