"""Stages: what is computed, what is found again, judges that come later, and what `status` says of all that."""

import shutil
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import saelake
from saelake.analysis import stage_list, verbs
from saelake.analysis.judges.harmbench import Classifier
from saelake.analysis.stage_list import ANSWERING
from saelake.analysis.study_context import StudyContext
from saelake.analysis.study_status import study_status
from saelake.analysis.workers import Worker
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.runs import ingest_runs
from saelake.ingest.study import open_study
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord
from tests.analysis.tiny_judge import COMMIT, REPOSITORY, lay_out_judge
from tests.lakes import tree
from tests.planted import write_planted

HARMBENCH = f'\n[verdicts.harmbench]\nid = "{REPOSITORY}"\ndtype = "float32"\n'
FEW = "\n[algorithm1]\nseeds = 1\ntaus = [0.5]\nblock_size = 2\n[minimal]\nstarts = 1\n"


def change(recipe: Recipe, old: str, new: str, more: str = "") -> Recipe:
    """The recipe with other text in its file."""
    assert recipe.file
    text = recipe.file.read_text()
    assert old in text
    file = recipe.file.with_name(f"changed_{abs(hash((old, new, more)))}.toml")
    file.write_text(text.replace(old, new) + more)
    return load_recipe(file)


def judged_by(recipe: Recipe, *judges: str, oracle: str = "first_token") -> Recipe:
    old = 'judges = ["first_token", "phrases"]\noracle = "first_token"'
    return change(recipe, old, f'judges = {list(judges)}\noracle = "{oracle}"', HARMBENCH)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    file = write_planted(tmp_path_factory.mktemp("stages")).recipe
    text = file.read_text().replace("shard_prompts = 16", "shard_prompts = 6").replace("random_draws = 3", "random_draws = 1")
    file.write_text(text.replace("cap = 4", "cap = 2") + FEW)
    return load_recipe(file)


@pytest.fixture(scope="module")
def lake(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Analysed; do not change it."""
    lake = Lake.create(tmp_path_factory.mktemp("stages_lake"))
    verbs.analyze(recipe, lake)
    return lake


@pytest.fixture
def own_lake(lake: Lake, tmp_path: Path) -> Lake:
    """A copy of it, to be changed."""
    return Lake(Path(shutil.copytree(lake.root, tmp_path / "own")))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_out_judge(tmp_path / "hub", monkeypatch)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a subject or a classifier is loaded."""

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(Subject, "load", fails)
    monkeypatch.setattr(Classifier, "load", fails)


def contents(records: Sequence[RunRecord]) -> dict[str, str]:
    return {record.stage: record.content_hash for record in records}


def run_ids(recipe: Recipe) -> dict[str, str]:
    return {name: spec.run_id for name, spec in stage_list.specs(open_study(recipe)).items()}


@pytest.mark.usefixtures("no_model")
def test_asking_again_computes_and_writes_nothing(recipe: Recipe, lake: Lake) -> None:
    before = tree(lake.root)
    records = verbs.analyze(recipe, lake)
    assert list(dict.fromkeys(record.stage for record in records)) == ["prompts", "activations", *run_ids(recipe)]
    assert tree(lake.root) == before


def test_every_stage_is_there_after_its_parents(recipe: Recipe, lake: Lake) -> None:
    seen = {run_id for one in ingest_runs(open_study(recipe)) for run_id in one.run_ids}
    for name, run_id in run_ids(recipe).items():
        record = lake.record(run_id)
        assert record is not None
        assert set(record.parents) <= seen, name
        seen.add(run_id)


def test_judges_are_no_part_of_what_is_answered_and_the_oracle_is(recipe: Recipe, hub: Path) -> None:
    answering = ["direction", *(stage.name for stage in ANSWERING)]
    one, two = run_ids(judged_by(recipe, "first_token")), run_ids(recipe)
    assert {name: one[name] for name in answering} == {name: two[name] for name in answering}
    assert set(two) - set(one) == {"verdicts_phrases"}
    other = run_ids(judged_by(recipe, "phrases", oracle="phrases"))
    assert other["alignments"] != one["alignments"], "the oracle chooses the direction"
    by_model = run_ids(judged_by(recipe, "harmbench", oracle="harmbench"))
    assert by_model["candidates"] not in (one["candidates"], other["candidates"])
    (hub / "README.md").write_text("```\nAnother: {behavior} {generation}\n```\n")
    assert run_ids(judged_by(recipe, "harmbench", oracle="harmbench"))["candidates"] != by_model["candidates"]


def test_a_change_reruns_only_what_depends_on_it(recipe: Recipe) -> None:
    before = run_ids(recipe)
    after = run_ids(change(recipe, "random_draws = 1", "random_draws = 2"))
    assert [name for name in before if before[name] != after[name]] == ["controls", "statistics", "verdicts_phrases"]
    after = run_ids(change(recipe, "[generation]", "[fm]\nsizes = [5, 20]\n[generation]"))
    assert [name for name in before if before[name] != after[name]] == [
        "fm",
        "stage3",
        "populations",
        "statistics",
        "verdicts_phrases",
    ]


def test_a_judge_reads_stored_answers_later(recipe: Recipe, own_lake: Lake, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, study = own_lake, judged_by(recipe, "first_token", "phrases")
    assert "verdicts_harmbench" not in {s.stage for s in study_status(study, lake)}

    def no_subject(*_: Any) -> None:
        raise AssertionError("the subject is loaded")

    monkeypatch.setattr(Subject, "load", no_subject)
    record = verbs.judge(study, lake, "harmbench")
    assert record.stage == "verdicts_harmbench"
    assert record.config["judge"]["model"] == f"{REPOSITORY}@{COMMIT}"
    assert len(record.config["judge"]["template_sha256"]) == 64
    with saelake.open(lake.root, "planted") as opened:
        counts = dict(opened.sql("select judge, count(distinct ablation_id) from verdicts group by judge").fetchall())
        answered = opened.sql("from ablations where stage <> 'waking'").shape[0]  # in its passes nothing is generated
        assert counts == dict.fromkeys(("first_token", "phrases", "harmbench"), answered)
        assert opened.query("asr", judge="harmbench").shape[0] > 5
    assert {s.stage: s.state for s in study_status(study, lake)}["verdicts_harmbench"] == "done"
    monkeypatch.setattr(Classifier, "load", no_subject)
    assert verbs.judge(study, lake, "harmbench").run_id == record.run_id, "asked again, it is found"
    (hub / "README.md").write_text("```\nAnother: {behavior} {generation}\n```\n")
    (state,) = [s for s in study_status(study, lake) if s.stage == "verdicts_harmbench"]
    assert (state.state, state.why) == ("to do", "changed: judge.template_sha256")
    stale = [s.state for s in study_status(change(study, "cap = 2", "cap = 1"), lake)]
    assert stale.count("to do") > 3


def test_a_judge_that_is_stopped_goes_on_with_the_missing_shards(recipe: Recipe, own_lake: Lake, hub: Path) -> None:
    (hub / "README.md").write_text("```\nAnother: {behavior} {generation}\n```\n")
    study = judged_by(recipe, "first_token", "harmbench")

    class Stopped(Quiet):
        def advance(self, n: int = 1, rows: int = 0) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verbs.judge(study, own_lake, "harmbench", progress=Stopped())
    (state,) = [s for s in study_status(study, own_lake) if s.stage == "verdicts_harmbench"]
    assert (state.state, state.why) == ("resumable", "1 shards landed")
    already: list[int] = []

    class Counts(Quiet):
        def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
            already.append(done)

    record = verbs.judge(study, own_lake, "harmbench", progress=Counts())
    assert already[0] == 1
    assert verbs.judge(study, own_lake, "harmbench", force=True).content_hash == record.content_hash


def test_what_cannot_be_judged_is_one_sentence(recipe: Recipe, lake: Lake, tmp_path: Path, hub: Path) -> None:
    with pytest.raises(UserError, match="the judges are first_token, harmbench, phrases"):
        verbs.judge(recipe, lake, "guess")
    with pytest.raises(UserError, match="first_token is the oracle of planted"):
        verbs.judge(recipe, lake, "first_token")
    with pytest.raises(UserError, match=r"baseline, .* run `saelake analyze` first"):
        verbs.judge(recipe, Lake.create(tmp_path / "empty"), "phrases")


def test_the_subject_is_gone_before_the_classifier_comes(
    recipe: Recipe, own_lake: Lake, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other controls, which the subject answers, and the classifier's verdicts on all answers."""
    subjects: list[weakref.ref[torch.nn.Module]] = []
    load_subject, load_judge = Subject.load.__func__, Classifier.load.__func__  # type: ignore[attr-defined]

    def loads_subject(cls: type[Subject], *arguments: Any) -> Subject:
        subject = load_subject(cls, *arguments)
        subjects.append(weakref.ref(subject.model))
        return subject

    judges = 0

    def loads_judge(cls: type[Classifier], *arguments: Any) -> Classifier:
        nonlocal judges
        judges += 1
        assert subjects
        assert [reference() for reference in subjects] == [None] * len(subjects), "a subject is still in memory"
        return load_judge(cls, *arguments)

    monkeypatch.setattr(Subject, "load", classmethod(loads_subject))
    monkeypatch.setattr(Classifier, "load", classmethod(loads_judge))
    changed = change(recipe, "random_draws = 1", "random_draws = 2")
    records = verbs.analyze(judged_by(changed, "first_token", "harmbench"), own_lake)
    assert records[-1].stage == "verdicts_harmbench"
    assert judges == 1


def test_a_worker_loads_a_judge_that_is_a_model_once(
    recipe: Recipe, own_lake: Lake, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that the recipe does not name, and `saelake judge` asks beside it."""
    loads, load = [], Classifier.load.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Classifier, "load", classmethod(lambda *given: loads.append(1) or load(*given)))
    recipe = judged_by(recipe, "first_token")
    judged = verbs.judge(recipe, own_lake, "harmbench")
    worker = Worker(recipe, str(own_lake))
    loads.clear()
    for shard in stage_list.judging_stage("harmbench").shards(verbs.open_analysis(recipe))[:2]:
        assert worker.shard(judged.stage, judged.run_id, shard)
    assert len(loads) == 1


def test_searches_work_with_the_classifier_as_their_oracle(
    recipe: Recipe, tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], Classifier.load.__func__  # type: ignore[attr-defined]

    def loads_judge(cls: type[Classifier], *arguments: Any) -> Classifier:
        loads.append(load(cls, *arguments))
        return loads[-1]

    def says_yes(self: Classifier, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        probabilities_bv = torch.zeros(len(sequences), len(self.tokenizer))
        no = self.tokenizer.convert_tokens_to_ids("No")
        for row, sequence in enumerate(sequences):
            probabilities_bv[row, self.yes_ids[0] if "Answered: Sure" in self.tokenizer.decode(sequence) else no] = 1
        return probabilities_bv

    monkeypatch.setattr(Classifier, "load", classmethod(loads_judge))
    monkeypatch.setattr(Classifier, "_probabilities", says_yes)
    lake = Lake.create(tmp_path / "lake")
    verbs.analyze(judged_by(recipe, "harmbench", "phrases", oracle="harmbench").limit(4), lake)
    assert len(loads) == 1, "the oracle is loaded once for all stages"
    with saelake.open(lake.root) as opened:
        by_k = opened.query("asr", judge="harmbench").filter("condition = 'top_k_own' and label = 'harmful'")
        assert by_k.select("k", "n_flipped").order("k").fetchall() == [(1, 0), (2, 4)]
        assert opened.sql("select n_flipped from directions where chosen").fetchall() == [(4,)]
        flips = "select judge, bool_and(flipped), min(score) from ablations join verdicts using (ablation_id) "
        found = opened.sql(flips + "where condition = 'minimal' group by judge order by judge").fetchall()
        assert found == [("harmbench", True, 0.0), ("phrases", True, 0.0)]


@pytest.mark.usefixtures("no_model")
def test_status_is_quick_and_says_what_has_changed(recipe: Recipe, lake: Lake, tmp_path: Path) -> None:
    started = time.perf_counter()
    found = {s.stage: s for s in study_status(recipe, lake)}
    assert time.perf_counter() - started < 2
    assert list(found)[:3] == ["prompts", "activations", "direction"]
    assert {s.state for s in found.values()} == {"done"}
    changed = {s.stage: s for s in study_status(change(recipe, "random_draws = 1", "random_draws = 2"), lake)}
    assert changed["minimal"].state == "done"
    assert (changed["controls"].state, changed["controls"].why) == ("to do", "changed: controls.random_draws")
    assert changed["verdicts_phrases"].why == "changed: run of controls"
    assert {s.why for s in study_status(recipe, Lake(tmp_path / "none"))} == {"never computed"}
    assert not (tmp_path / "none").exists()


def test_a_judge_that_is_out_of_reach_by_now_is_told(recipe: Recipe, own_lake: Lake, hub: Path) -> None:
    verbs.judge(judged_by(recipe, "first_token", "phrases"), own_lake, "harmbench")
    (state,) = [s for s in study_status(recipe, own_lake) if s.stage == "verdicts_harmbench"]
    assert state.state == "unknown", "the classifier of this recipe is not in the hub's cache"
    assert "cannot be reached" in state.why


def test_a_limited_run_is_another_study_of_the_same_recipe(recipe: Recipe, lake: Lake) -> None:
    found = study_status(recipe.limit(1), lake)
    assert {s.stage for s in found if s.state != "to do"} == {"logits"}, "which reads no prompt"


def test_forced_stages_give_the_same_content(recipe: Recipe, lake: Lake) -> None:
    assert contents(verbs.analyze(recipe, lake, force=True)) == contents(verbs.analyze(recipe, lake))


def test_a_split_without_the_prompts_it_needs_is_told_before_anything_is_computed(recipe: Recipe, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    with pytest.raises(UserError, match=r"candidates\.split is 'nowhere', but no harmful prompt is in that split"):
        verbs.analyze(change(recipe, 'split = "test"', 'split = "nowhere"'), lake)
    assert not lake.run_ids()


def test_stages_read_on_one_thread_so_that_sums_of_floats_are_always_the_same(recipe: Recipe, lake: Lake) -> None:
    with StudyContext(verbs.open_analysis(recipe), lake).sql([]) as con:
        assert con.execute("select current_setting('threads')").fetchall() == [(1,)]
