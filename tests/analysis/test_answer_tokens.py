"""Activations on the model's own answers: those of the engine, token by token, clean and under a condition, in one question."""

from pathlib import Path

import duckdb
import pytest

import saelake
from saelake.analysis import verbs
from saelake.analysis.engine.asked import Key
from saelake.analysis.search import answer_tokens, baseline, directions
from saelake.analysis.stage_list import specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage, open_analysis
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.share import share

N = 3


def recipe_of(n: int) -> Recipe:
    planted = load_recipe("planted").limit(4)
    return planted.model_copy(update={"capture": planted.capture.model_copy(update={"answer_tokens": n})})


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The first stages of the planted study, what fires on its answers, and an ablation of one's own."""
    lake, study = Lake.create(tmp_path_factory.mktemp("answers") / "lake"), open_analysis(recipe_of(N))
    context, known = StudyContext(study, lake), specs(study)
    ingest_study(study, lake, loaded=context.loaded)
    for stage in (directions.STAGE, baseline.STAGE, answer_tokens.STAGE):
        ensure_stage(stage, known, context)
    verbs.ablate(study.recipe, lake, "mine", [(2, 5), (3, 5)])
    return lake


def test_the_rows_are_what_the_engine_finds(lake: Lake) -> None:
    context = StudyContext(open_analysis(recipe_of(N)), lake)
    engine = saelake.Engine(context.subject, list(context.saes.values()))
    key = {sae.layer: sae_id for sae_id, sae in engine.saes.items()}
    with saelake.open(lake.root) as opened:
        asked: list[tuple[str, dict[Key, list[int]]]] = [("none", {}), ("mine", {key[2]: [5], key[3]: [5]})]
        for condition, ablated in asked:
            rows = opened.sql(
                "select a.prompt_id, p.text, p.n_tokens, a.ablation_id, a.completion from ablations as a join prompts as p "
                "using (prompt_id) where condition = $1 order by prompt_id",
                [condition],
            ).fetchall()
            texts = [text for _, text, *_ in rows]
            wanted = engine.activations(texts, max_new_tokens=N, ablate=ablated).to_pylist()
            said = engine.answer(texts, max_new_tokens=N, ablate=ablated).token_ids
            for place, (prompt_id, _, n_tokens, ablation_id, completion) in enumerate(rows):
                tokens = opened.sql(
                    "select pos, token_id, role, token, prompt_id from answer_tokens where ablation_id = $1 order by pos",
                    [ablation_id],
                ).fetchall()
                assert [token for _, token, *_ in tokens] == said[place]
                assert [pos for pos, *_ in tokens] == list(range(n_tokens, n_tokens + len(said[place])))
                assert {(role, of) for *_, role, _, of in tokens} <= {("answer", prompt_id)}
                assert completion.replace(" ", "").startswith("".join(token for *_, token, _ in tokens).replace(" ", ""))
                found = opened.sql(
                    "select sae_id, feature_id, pos, activation from answer_activations where ablation_id = $1 order by all",
                    [ablation_id],
                ).fetchall()
                mine = [one for one in wanted if one["prompt"] == place and one["pos"] >= n_tokens]
                assert [row[:3] for row in found] == sorted((one["sae_id"], one["feature_id"], one["pos"]) for one in mine)
                assert found


def test_one_question_says_what_fires_while_it_refuses(lake: Lake) -> None:
    with saelake.open(lake.root) as opened:
        rows = opened.query("answer_features", says="cannot", limit=None)
        clean = {(layer, feature): (share, other) for layer, _, feature, _, _, share, _, _, other, *_ in rows.fetchall()}
        (said,) = opened.sql(
            "select count(*) from ablations where condition = 'none' and contains(lower(completion), 'cannot')"
        ).fetchall()
        held = opened.query("answer_features", says="", condition="direction", limit=None).fetchall()
        assert opened.query("answer_features", says="never said at all").fetchall() == []
        n_tokens = opened.sql("select max(n) from (select count(*) as n from answer_tokens group by ablation_id)").fetchall()
    assert said[0] > 0, "the planted model refuses in these words"
    assert any(share == 1 and not other for share, other in clean.values())
    assert held
    assert n_tokens == [(N,)]


def test_it_is_a_sound_lake_whose_other_runs_stay_what_they_were(lake: Lake) -> None:
    assert [str(finding) for finding in check(lake) if not finding.note] == []
    without, with_answers = specs(open_analysis(recipe_of(0))), specs(open_analysis(recipe_of(N)))
    assert "answer_tokens" not in without
    assert {name: spec.run_id for name, spec in without.items()}.items() <= {n: s.run_id for n, s in with_answers.items()}.items()


def test_answers_to_target_prompts_stay_here_when_a_lake_is_shared(lake: Lake, tmp_path: Path) -> None:
    share(lake, tmp_path / "set")
    with saelake.open(lake.root) as opened:
        shared = f"read_parquet('{tmp_path}/set/data/answer_tokens/*.parquet')"
        spelt = duckdb.sql(f"select prompt_id, token_id, token from {shared}").fetchall()
        roles = dict(opened.sql("select prompt_id, label_role from prompts").fetchall())
    assert {bool(token) for prompt_id, _, token in spelt if roles[prompt_id] == "control"} == {True}
    assert {(token_id, token) for prompt_id, token_id, token in spelt if roles[prompt_id] != "control"} == {(0, "")}


def test_more_tokens_than_judges_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"capture\.answer_tokens is 9, but answers end after generation\.max_new_tokens = 8"):
        Recipe.model_validate(recipe_of(9).model_dump(exclude_unset=True, exclude={"prompts_per_group"}))
