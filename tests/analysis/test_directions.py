"""R3 by hand: the rows of `directions` against plain passes, one prompt at a time; and who takes whose sets."""

from typing import Any

import duckdb
import numpy as np
import pytest
import torch

from saelake.analysis import verbs
from saelake.analysis.engine.requests import DirectionEdit, Request
from saelake.analysis.search.directions import (
    NoDirection,
    Scores,
    Selection,
    best_scores,
    choose,
    difference_of_means,
    left_out,
    require_chosen,
    share,
)
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import load_recipe
from saelake.ingest.recipe.search import Direction
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed
from tests.analysis.literal import literal_logits

LAYERS = 6


@pytest.fixture(scope="module")
def rows(study: Analysed) -> list[dict[str, Any]]:
    names = "layer, vector, norm, n_prompts, n_flipped, p_refusal_token, kl, induced, admitted, chosen"
    found = study.sql(f"select {names} from directions order by layer")
    return [dict(zip(names.split(", "), row, strict=True)) for row in found]


def tokens(study: Analysed, subject: Subject, split: str, label: str) -> list[list[int]]:
    texts = study.sql(f"select text from prompts where split = '{split}' and label = '{label}' order by prompt_id")
    return [subject.encode(text).token_ids for (text,) in texts]


def test_a_direction_is_the_difference_of_means_of_the_last_token(
    study: Analysed, subject: Subject, rows: list[dict[str, Any]]
) -> None:
    means = {}
    for label in ("harmful", "benign"):
        passes = []
        for ids in tokens(study, subject, study.recipe.direction.split, label):
            with torch.no_grad():
                passes.append(torch.stack(subject.model(torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0, -1])
        means[label] = torch.stack(passes).double().mean(0)
    literal = (means["harmful"] - means["benign"]).numpy()
    for row in rows[:-1]:  # transformers gives the last block's behind the final norm
        mine = literal[row["layer"] + 1]
        assert row["norm"] == pytest.approx(np.linalg.norm(mine), rel=1e-4)
        np.testing.assert_allclose(row["vector"], mine / np.linalg.norm(mine), atol=1e-4)


def test_what_a_direction_does_is_what_plain_passes_do(
    study: Analysed, subject: Subject, saes: dict[int, Sae], rows: list[dict[str, Any]]
) -> None:
    (refusal,) = subject.tokenizer.convert_tokens_to_ids(list(study.recipe.model.refusal_tokens))
    split = study.recipe.direction.select_split
    harmful, benign = (tokens(study, subject, split, label) for label in ("harmful", "benign"))

    def log_p(ids: list[int], direction: DirectionEdit | None = None) -> torch.Tensor:
        return literal_logits(subject, saes, ids, Request(0, direction=direction), len(ids)).log_softmax(-1)

    refused = [ids for ids in harmful if int(log_p(ids).argmax()) == refusal]
    assert refused
    vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
    turned = -vectors + np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    norms = np.array([row["norm"] for row in rows])
    context = StudyContext(verbs.open_analysis(study.recipe), study.lake)
    stored = [Scores(*(row[name] for name in Scores.__dataclass_fields__)) for row in rows]
    asked = Selection(context, turned, norms)
    others = [asked.in_full(layer) for layer in range(LAYERS)]
    both = zip([*range(LAYERS)] * 2, [*vectors, *turned], [*norms] * 2, [*stored, *others], strict=True)
    for layer, vector, norm, scores in both:
        out = DirectionEdit(vector, tuple(map(Site, range(LAYERS))))
        toward = DirectionEdit(vector, (Site(layer),), project_out=False, add=float(norm))
        ablated = [log_p(ids, out) for ids in refused]
        assert scores.n_prompts == len(refused)
        if scores in stored:  # a turned direction leaves no sense in some answers
            assert scores.n_flipped == sum(int(one.argmax()) != refusal for one in ablated)
        assert scores.p_refusal_token == pytest.approx(float(torch.stack(ablated)[:, refusal].exp().mean()), abs=1e-4)
        kl = [float((log_p(ids).exp() * (log_p(ids) - log_p(ids, out))).sum()) for ids in benign]
        assert scores.kl == pytest.approx(np.mean(kl), rel=1e-2, abs=1e-5)
        assert scores.induced == np.mean([int(log_p(ids, toward).argmax()) == refusal for ids in benign])
    assert max(one.kl or 0.0 for one in others) > 0.05, "the planted direction moves no benign prompt, another one does"
    assert {one.induced for one in stored} == {1.0}
    assert min(1.0 if one.induced is None else one.induced for one in others) < 1
    assert [row["chosen"] for row in rows].count(True) == 1


def test_control_prompts_take_the_sets_of_the_searched_prompts_in_turn(study: Analysed) -> None:
    members = """
        select p.label, a.prompt_id, a.draw, list((f.layer, f.feature_id) order by f.layer, f.feature_id)
        from ablations as a join prompts as p using (prompt_id) join feature_sets as f using (set_id)
        where a.method = 'minimal' and a.part is null and a.control is null
        group by all order by a.prompt_id, a.draw
    """
    found: dict[str, dict[int, list[Any]]] = {"harmful": {}, "benign": {}}
    for label, prompt, _, features in study.sql(members):
        found[label].setdefault(prompt, []).append(features)
    donors = list(found["harmful"].values())
    assert len({repr(sets) for sets in donors}) > 1, "so that it matters whose"
    n_controls = len(study.sql("select 1 from prompts where split = 'test' and label = 'benign'"))
    assert list(found["benign"].values()) == [donors[i % len(donors)] for i in range(n_controls)]


@pytest.mark.parametrize("filters", [{}, {"kl_max": 0.1, "drop_last_layers": 0.2}, {"kl_max": 1.0, "induce_min": 0.5}])
def test_the_best_direction_is_found_without_measuring_every_layer(
    filters: dict[str, float], study: Analysed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On the embedded model, with its recipe's filters and with stricter ones: the layer that all measures choose."""
    recipe = load_recipe("organism").limit(30)
    settings = recipe.direction.model_copy(update=filters)
    context = StudyContext(verbs.open_analysis(recipe), Lake.create(tmp_path_factory.mktemp("best") / "lake"))
    differences = difference_of_means(context, settings.split)
    norms = np.linalg.norm(differences, axis=1)
    asked = Selection(context, differences / norms[:, None], norms)
    n_layers = len(norms)
    few = best_scores(asked, settings)
    n_whole = asked.whole.cache_info().currsize
    full = [asked.in_full(layer) for layer in range(n_layers)]

    def chosen(scores: list[Scores]) -> int | None:
        return choose(scores, [one is None for one in left_out(scores, settings)])

    assert chosen(few) == chosen(full)
    if chosen(full) is None:
        assert few == full, "so that the sentence can say what would have to change"
        return
    assert n_whole < n_layers
    for layer, (one, whole) in enumerate(zip(few, full, strict=True)):
        known = {name: value for name, value in vars(one).items() if value is not None}
        assert known == {name: pytest.approx(vars(whole)[name], abs=1e-6) for name in known}, layer
    assert left_out(few, settings)[chosen(few) or 0] is None
    assert all(out is not None for layer, out in enumerate(left_out(few, settings)) if few[layer].induced is None)


def test_filters_leave_out_what_is_beyond_them_and_not_what_is_at_them() -> None:
    settings = Direction(drop_last_layers=0.2, kl_max=0.1, induce_min=0.5)
    at = Scores(9, 5, 0.5, kl=0.1, induced=0.5)
    nan = float("nan")
    scores = [at, Scores(9, 5, 0.5, 0.11, 0.5), Scores(9, 5, 0.5, 0.1, 0.49), Scores(9, 5, 0.5, nan, 0.2)]
    scores += [Scores(9), Scores(9, None, 0.5, 0.2), Scores(9, 5, 0.5, 0.05), Scores(9, 0, 0.0, 0.0, 1.0)]
    expected = [None, "kl", "induced", "kl, induced", "outdone", "kl", "outdone", None]
    assert left_out([*scores, at, Scores(9)], settings) == [*expected, "late", "late"], "of ten layers the last two are late"
    assert left_out([at] * 3, settings) == [None, None, "late"], "the open ones are rounded"
    assert left_out([at] * 2, settings) == [None, None]


def test_most_flips_then_the_lower_probability_then_the_lower_layer() -> None:
    scores = [Scores(9, 5, 0.4), Scores(9, 6, 0.3), Scores(9, 6, 0.2), Scores(9, 6, 0.2), Scores(9, 7, 0.9)]
    assert choose(scores, [True] * 5) == 4
    assert choose(scores, [True] * 4 + [False]) == 2
    assert choose(scores, [True, True, False, False, False]) == 1
    assert choose(scores, [False] * 5) is None
    assert share([]) == share([None]) == 0
    assert share([True, None, False, False]) == pytest.approx(1 / 3)


LEFT = {  # (n_flipped, kl, induced) of four layers, settings -> the layer that is named, and what would admit it
    "kl": ([(5, 0.504, 0.9), (7, 0.312, 0.9), (7, 0.401, 0.9), (9, 0.2, 0.9)], {"drop_last_layers": 0.25}, 1, ["kl_max = 0.32"]),
    "induced": ([(5, 0.0, 0.2), (4, 0.0, 0.459), (0, 0.0, 0.0), (0, 0.0, 0.0)], {}, 0, ["induce_min = 0.2"]),
    "both": ([(0, 0.0, 0.0)] * 2 + [(3, 0.234, 0.116), (2, 0.5, 0.1)], {}, 2, ["kl_max = 0.24", "induce_min = 0.11"]),
    "late": ([(0, 0.0, 0.0)] * 3 + [(6, 0.01, 0.9)], {"drop_last_layers": 0.3}, 3, ["drop_last_layers = 0"]),
    "equal": ([(5, 0.3004, 0.9), (5, 0.3001, 0.9), (5, 0.35, 0.9), (0, 0.0, 0.0)], {}, 0, ["kl_max = 0.31"]),
}


@pytest.mark.parametrize("case", LEFT)
def test_where_no_layer_is_left_the_sentence_says_what_would_admit_the_best_one(case: str) -> None:
    measured, fields, layer, changes = LEFT[case]
    given: dict[str, Any] = {"drop_last_layers": 0.0, "kl_max": 0.1, "induce_min": 0.5} | fields
    scores = [Scores(9, n, 0.5, kl, induced) for n, kl, induced in measured]
    out = left_out(scores, Direction(**given))
    with duckdb.connect() as con:
        con.execute(
            "create table directions "
            "(layer int, n_prompts int, n_flipped int, kl double, induced double, left_out text, chosen bool, vector float[])"
        )
        for i, (one, why) in enumerate(zip(scores, out, strict=True)):
            values = [i, 9, one.n_flipped, one.kl, one.induced, why, False, [1.0]]
            con.execute("insert into directions values (?, ?, ?, ?, ?, ?, ?, ?)", values)
        with pytest.raises(NoDirection, match=f"layer {layer}, which flips {measured[layer][0]} of 9 prompts") as told:
            require_chosen(con)
        con.execute("update directions set chosen = true where layer = 1")
        require_chosen(con)
    suggested = str(told.value).partition("is admitted with ")[2].split(" and ")
    assert suggested == [f"direction.{change}" for change in changes]
    mended = given | {name: float(value) for name, _, value in (change.partition(" = ") for change in changes)}
    mended = {name.strip(): value for name, value in mended.items()}
    assert left_out(scores, Direction(**mended))[layer] is None, "which is so"
    for name, field in (("late", "drop_last_layers"), ("kl", "kl_max"), ("induced", "induce_min")):
        n = sum(name in str(one).split(", ") for one in out)
        assert (f"{field} {n}" in str(told.value)) == (n > 0)
