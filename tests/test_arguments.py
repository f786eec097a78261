"""Whatever the public library is given, it works or ends in one sentence; the sentence names no field of a recipe."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import saelake
from saelake.queries import QueryError
from tests.analysis.library_model import TEXTS, engine, sae, subject
from tests.ingest.tiny import D_MODEL
from tests.lakes import build_lake

NAN = float("nan")
VECTOR = torch.ones(D_MODEL)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 45),
    st.floats(),
    st.text(st.characters(), max_size=6),  # surrogates too
    st.binary(max_size=3),
    st.sampled_from(
        [
            np.int64(1),
            np.float32(2),
            np.array([1, 2]),
            np.array([[1.5]]),
            torch.tensor([1, 2]),
            torch.tensor(2.0),
            VECTOR,
            len,
            object(),
        ]
    ),
    st.sampled_from(
        [range(3), "user", "answer", "p_target", "blocks.1.hook_resid_post", saelake.Site(1), saelake.Ablate(1, [2])]
    ),
)
JUNK = st.recursive(
    ANYTHING,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.integers(-1, 3), st.text(max_size=3), st.booleans()), inner, max_size=2),
        st.frozensets(st.integers(0, 5), max_size=2),
    ),
    max_leaves=5,
)
RECIPES = re.compile(r"\b(?:model|saes|compute)\.(?!layers\b|decoder\b|language)[a-z_]+|\brecipe\b")
MOST = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def works_or_says_so(call: Callable[[], object], *, about_recipes: bool = False) -> None:
    error = raised_by(call)
    if isinstance(error, TypeError):  # a call that Python itself refuses, at its first line
        assert "argument" in str(error), error
        return
    if error is not None:
        said = str(error)
        assert "\n" not in said
        assert 0 < len(said) < 700
        assert about_recipes or not RECIPES.search(said), said


def raised_by(call: Callable[[], object]) -> saelake.UserError | TypeError | None:
    try:
        call()
    except (saelake.UserError, TypeError) as error:
        return error
    return None


EDITS = ("ablate", "clamp", "add", "project_out", "positions", "answering", "edits")


@MOST
@given(st.sampled_from(EDITS), JUNK, st.booleans())
def test_edits(name: str, junk: Any, deep: bool) -> None:
    more: dict[str, Any] = {"ablate": {1: [3]}} if name in ("positions", "answering") else {}
    if deep and name in ("ablate", "clamp", "add", "project_out"):
        junk = {1: {3: junk} if name == "clamp" else junk}
    works_or_says_so(lambda: engine().next_token(TEXTS[:1], **{name: junk}, **more))


@MOST
@given(st.sampled_from(["scale", "vector", "ids", "values", "over", "sae", "positions"]), JUNK)
def test_edits_as_objects(name: str, junk: Any) -> None:
    whole: dict[str, dict[str, Any]] = {
        "scale": {"site": 1, "vector": VECTOR},
        "vector": {"site": 1},
        "values": {"sae": 1, "ids": [3, 4]},
        "over": {"sae": 1, "ids": [3]},
        "ids": {"sae": 1},
        "sae": {"ids": [3]},
        "positions": {"sae": 1, "ids": [3]},
    }
    kind = {"scale": saelake.Add, "vector": saelake.ProjectOut, "values": saelake.Clamp, "over": saelake.MeanAblate}
    works_or_says_so(
        lambda: engine().next_token(TEXTS[:1], edits=[kind.get(name, saelake.Ablate)(**whole[name], **{name: junk})])
    )


@MOST
@given(JUNK, st.booleans())
def test_prompts(junk: Any, several: bool) -> None:
    works_or_says_so(lambda: engine().answer([junk] if several else junk, max_new_tokens=1))


@MOST
@given(st.sampled_from(["saes", "max_new_tokens", "means", "target", "steps"]), JUNK)
def test_activations_and_attribution(name: str, junk: Any) -> None:
    if name in ("max_new_tokens", "steps") and isinstance(junk, int) and junk > 4:
        junk = 4  # as many as asked for are computed
    calls: dict[str, Callable[[], object]] = {
        "saes": lambda: engine().activations(TEXTS[:1], saes=junk),
        "max_new_tokens": lambda: engine().activations(TEXTS[:1], max_new_tokens=junk),
        "means": lambda: engine().means(TEXTS[:1], junk),
        "target": lambda: saelake.attribution(engine(), TEXTS[:1], junk),
        "steps": lambda: saelake.attribution(engine(), TEXTS[:1], steps=junk),
    }
    works_or_says_so(calls[name])


@MOST
@given(st.sampled_from(["pool", "pair", "flips", "max_new_tokens", "seed", "engine", "prompt"]), JUNK)
def test_minimal_sets(name: str, junk: Any) -> None:
    given = {"engine": engine(), "prompt": TEXTS[0], "pool": [(1, 3)], "flips": bool, "max_new_tokens": 1, "seed": 0}
    if name == "max_new_tokens" and isinstance(junk, int) and junk > 4:
        junk = 4
    given |= {"pool": [junk]} if name == "pair" else {name: junk}
    if junk is len:
        return
    works_or_says_so(lambda: saelake.minimal_set(**given))  # type: ignore[arg-type]


@MOST
@given(
    st.sampled_from(
        ["model", "tokenizer", "target_tokens", "chat_template", "system", "template_variables", "max_prompt_tokens"]
    ),
    JUNK,
)
def test_subjects(name: str, junk: Any) -> None:
    given = {"model": subject().model, "tokenizer": subject().tokenizer} | {name: junk}
    works_or_says_so(lambda: saelake.Subject(**given))


@MOST
@given(st.sampled_from(["model", "dtype", "target_tokens", "compute", "device"]), JUNK)
def test_loaded_subjects(name: str, junk: Any) -> None:
    given = {"model": "no/such"} | {name: junk}
    works_or_says_so(lambda: saelake.Subject.load(**given))


@MOST
@given(st.sampled_from(["subject", "saes", "key", "batch_tokens", "layer", "kind"]), JUNK)
def test_engines_and_sites(name: str, junk: Any) -> None:
    given: dict[str, Any] = {"subject": subject(), "saes": [sae(0)]}
    calls: dict[str, Callable[[], object]] = {
        "key": lambda: saelake.Engine(subject(), {junk if junk.__hash__ and not isinstance(junk, tuple) else 0: sae(0)}),
        "layer": lambda: saelake.Site(junk),
        "kind": lambda: saelake.Site(0, junk),
    }
    works_or_says_so(calls.get(name, lambda: saelake.Engine(**(given | {name: junk}))))


X = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 3, dtype=np.float32)
Y = np.array([0, 1] * 6)
FM = (
    "k",
    "learning_rate",
    "epochs",
    "batch_size",
    "init_sd",
    "validation",
    "scale",
    "seed",
    "x",
    "y",
    "predict",
    "partners",
    "pairs",
)


@MOST
@given(st.sampled_from(FM), JUNK)
def test_factorisation_machines(name: str, junk: Any) -> None:
    if name in ("k", "epochs") and isinstance(junk, int) and junk > 40:
        junk = 40

    def run() -> None:
        made = {name: junk} if name in FM[:8] else {}
        machine = saelake.FactorizationMachine(**({"epochs": 1} | made)).fit(
            junk if name == "x" else X, junk if name == "y" else Y
        )
        machine.predict_proba(junk if name == "predict" else X)
        machine.score(X, junk if name == "y" else Y)
        machine.pairs(junk if name == "pairs" else 3)
        machine.partners(junk if name == "partners" else 1)

    works_or_says_so(run)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"validation": 1.0}, "validation is 1.0: give a share of the rows, from 0 and below 1"),
        ({"k": "a"}, "k is 'a': give a whole number from 0 up"),
        ({"k": -1}, "k is -1: give a whole number from 0 up"),
        ({"k": True}, "k is True: give a whole number from 0 up"),
        ({"k": 2.5}, "k is 2.5: give a whole number from 0 up"),
        ({"learning_rate": NAN}, "learning_rate is nan: give a finite number"),
        ({"validation": 0.99}, "leaves none of 12 rows to learn from"),
    ],
)
def test_settings_of_a_machine_that_are_none(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(saelake.UserError, match=expected):
        saelake.FactorizationMachine(**settings).fit(X, Y)


def test_a_machine_without_embeddings_is_a_logistic_regression() -> None:
    machine = saelake.FactorizationMachine(k=0, epochs=2).fit(X, Y)
    assert machine.pairs() == [saelake.FactorizationMachine(k=0, epochs=2).fit(X, Y)._pair(0, 1)]
    assert machine.partners(0)[0].interaction == 0


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"ablate": [5]}, r"ablate is \[5\]: give \{key: features\}"),
        ({"edits": None, "ablate": 5}, r"ablate is 5: give \{key: features\}"),
        ({"edits": 5}, "edits is 5: give a list of edits, or one list per prompt"),
        ({"clamp": {1: {7: "x"}}}, "held at is 'x': give a finite number"),
        ({"clamp": {1: {7: True}}}, "held at is True: give a finite number"),
        ({"clamp": {1: [7]}}, r"clamp of 1 is \[7\]: give \{feature: value\}"),
        ({"add": (VECTOR, [1.0])}, r"add is .*: give \{key: \(vector, scale\)\}"),
        ({"add": {1: (VECTOR, [1.0])}}, r"the scale of a vector is \[1.0\]: give a finite number"),
        ({"add": {1: (VECTOR, NAN)}}, "the scale of a vector is nan: give a finite number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5: give a whole number from 1 up"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"on_token": 3}, "on_token is 3: give a function of the prompt's place and its answer so far"),
        ({"ablate": {1: [True]}}, "are a list of numbers"),
        ({"ablate": {1: [3]}, "answering": "yes"}, "answering is 'yes': give True or False"),
    ],
)
def test_junk_edits_are_named(call: dict[str, Any], expected: str) -> None:
    with pytest.raises(saelake.UserError, match=expected):
        engine().answer(TEXTS[:1], **call)
    assert engine().next_token(TEXTS[:1], edits=None).first_token  # type: ignore[arg-type]


def test_positions_that_are_used_up_by_reading_act_on_every_prompt() -> None:
    once = engine().next_token(TEXTS, ablate={1: range(20)}, positions=(pos for pos in (0, 1))).p_target
    np.testing.assert_array_equal(once, engine().next_token(TEXTS, ablate={1: range(20)}, positions=[0, 1]).p_target)


@cache
def lake_folder() -> Path:
    return build_lake(Path(mkdtemp()) / "lake").root


@pytest.fixture(scope="module")
def lake() -> Iterator[saelake.OpenLake]:
    with saelake.open(lake_folder()) as opened:
        yield opened


@MOST
@given(
    st.sampled_from(
        ["path", "recipe", "table", "rows", "study", "about", "statement", "question", "k", "engine", "layer", "library"]
    ),
    JUNK,
)
def test_lakes(lake: saelake.OpenLake, name: str, junk: Any) -> None:
    rows = [{"prompt_id": 1}]
    calls: dict[str, Callable[[], object]] = {
        "path": lambda: saelake.open(junk),
        "recipe": lambda: saelake.open(lake_folder(), junk).close(),
        "table": lambda: lake.write(junk, rows),
        "rows": lambda: lake.write("ablations", junk),
        "study": lambda: lake.write("ablations", rows, study=junk),
        "about": lambda: lake.write("ablations", rows, about=junk),
        "statement": lambda: lake.sql(junk),
        "question": lambda: lake.query(junk),
        "k": lambda: lake.query("candidates", k=junk),
        "engine": lambda: lake.query("candidates", engine=junk, k=1),
        "layer": lambda: lake.sparse(layer=junk),
        "library": lambda: lake.sparse(layer=1, library=junk),
    }

    def run() -> None:
        with suppress(QueryError, duckdb.Error):  # which both say that they raise
            calls[name]()

    works_or_says_so(run, about_recipes=True)
