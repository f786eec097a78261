"""What `saelake plan --trial` expects of a study, from a few passes of each kind."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import Tensor

from saelake import cli
from saelake.analysis import trial
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import open_analysis
from saelake.ingest.capture import Captured, Nonzeros, capture, nonzeros
from saelake.ingest.plan.estimate import StageTime, make_plan
from saelake.ingest.plan.work import StageWork
from saelake.ingest.recipe import load_recipe
from saelake.ingest.saes.sae import Sae
from saelake.ingest.subject import Subject
from saelake.warehouse.lake import Lake

KINDS = trial.Kinds(captured=3.0, ablated=2.0, answered=7.0)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (StageWork("ingest", 10, 0, 1.0), 30),
        (StageWork("readouts", 10, 0, 0.5), 20),
        (StageWork("baseline", 0, 10, 1.0), 90),
        (StageWork("minimal", 10, 10, 0.5, waits=2.0), 180),
        (StageWork("losses", 10, 0, 1.0, length=40.0), 80),
        (StageWork("harmbench", 10, 0, 1.0, n_parameters=13), 36),
    ],
    ids=lambda one: one.stage if isinstance(one, StageWork) else "",
)
def test_passes_count_by_their_depth_length_and_answers(work: StageWork, seconds: float) -> None:
    assert trial._seconds(StageTime(work, 0.01), KINDS, 0.5, 20.0) == pytest.approx(seconds)


def test_a_trial_takes_some_passes_a_prompt_and_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}

    def counted(name: str) -> Callable[..., Any]:
        compute = getattr(AblationEngine, name)

        def of(engine: AblationEngine, requests: Sequence[Any], *more: Any) -> Any:
            asked[name] = asked.get(name, 0) + len(requests)
            return compute(engine, requests, *more)

        return of

    for name in ("next_token", "log_probabilities", "answer", "activations"):
        monkeypatch.setattr(AblationEngine, name, counted(name))
    monkeypatch.setattr(trial, "capture", partial(captured, asked))
    recipe = load_recipe("planted")
    planned = make_plan(recipe, measure=False).stages
    tried = trial.try_study(recipe, 4, planned)
    assert asked == {"capture": 4 + 1, "next_token": 16 + 4, "answer": 16 + 4}
    assert tried.n_prompts == 4
    assert [(one.stage, one.passes) for one in tried.stages] == [(one.work.stage, one.work.passes) for one in planned]
    assert tried.seconds == sum(one.seconds for one in tried.stages) > 0
    assert tried.memory > 50e6


def captured(asked: dict[str, int], subject: Subject, prompts: Sequence[Sequence[int]], *more: Any, **named: Any) -> Captured:
    asked["capture"] = asked.get("capture", 0) + len(prompts)
    return capture(subject, prompts, *more, **named)


def test_what_ingest_does_is_timed_whole_and_nothing_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block below the highest SAE in the timed pass too, whatever was computed before; every SAE on every token."""
    recipe = load_recipe("planted")
    recipe = recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"layers": (1, 3)})})
    context = StudyContext(open_analysis(recipe), Lake.create(tmp_path / "lake"))
    ran, encoded = dict.fromkeys(range(context.subject.n_layers), 0), list[tuple[int, int]]()

    def encode(sae: Sae, resid_nd: Tensor, **named: Any) -> Nonzeros:
        encoded.append((sae.layer, len(resid_nd)))
        return nonzeros(sae, resid_nd, **named)

    def count(layer: int, _: Tensor) -> None:
        ran[layer] += 1

    monkeypatch.setattr(trial, "nonzeros", encode)
    with ExitStack() as hooks:
        for layer in ran:
            hooks.enter_context(context.subject.resid_post(layer, partial(count, layer)))
        assert trial._captured(context, [0]) > 0
    assert ran == {layer: 2 if layer <= 3 else 0 for layer in ran}
    n_tokens = len(context.token_ids[0])
    assert [one for one in encoded if one[1] == n_tokens] == [(1, n_tokens), (3, n_tokens)]


def test_the_command_shows_what_was_measured() -> None:
    said = CliRunner().invoke(cli.main, ["plan", "planted", "--no-measure", "--trial", "2"])
    assert said.exit_code == 0, said.output
    assert "trial · 2 prompts, ms a pass: " in said.output
    assert "ablated and answered" in said.output
    assert CliRunner().invoke(cli.main, ["plan", "planted", "--trial", "0"]).exit_code == 2
