"""Inspect's logs: what its own package writes is read, and what a sample says of itself is checked."""

import json
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in
from saelake.warehouse.lake import Lake
from tests.formats.samples import SCORED, log
from tests.formats.test_formats import refusal

ASKED = Asked(refused="refusal", judge="grader")


def answers(lake: Lake) -> list[tuple[object, ...]]:
    with saelake.open(lake.root) as opened:
        return opened.sql(
            "select text, completion, judge, refused, score from ablations join prompts using (prompt_id) "
            "left join verdicts using (ablation_id) where ablations.stage = 'imported_inspect' order by text"
        ).fetchall()


WANTED = sorted((prompt, said, "grader", value == "C", float(value == "C")) for prompt, said, value in SCORED)


def test_answers_and_scores_are_read(lake: Lake, tmp_path: Path) -> None:
    record = bring_in(lake.root, "inspect", str(log(tmp_path)), ASKED)
    assert answers(lake) == WANTED
    assert (record.about["models"], record.about["scorers"]) == (["mockllm/model"], ["refusal"])


def test_what_inspect_writes_is_read(lake: Lake, tmp_path: Path) -> None:
    inspect = pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    names = ("dataset", "model", "scorer", "solver")
    dataset, model, scorer, solver = (import_module(f"inspect_ai.{name}") for name in names)

    @scorer.scorer(metrics=[scorer.accuracy()])
    def refusal():  # type: ignore[no-untyped-def]
        async def score(state, target):  # type: ignore[no-untyped-def]
            return scorer.Score(value="C" if "cannot" in state.output.completion else "I")

        return score

    said = [model.ModelOutput.from_content("mockllm/model", text) for _, text, _ in SCORED]
    for one in said:  # else its mock model fetches a tokenizer to count with
        one.usage = model.ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    task = inspect.Task(
        dataset=[dataset.Sample(input=prompt) for prompt, *_ in SCORED], solver=solver.generate(), scorer=refusal()
    )
    mock = model.get_model("mockllm/model", custom_outputs=said)
    done = inspect.eval(task, model=mock, log_dir=str(tmp_path / "logs"), log_format="eval", display="none", max_samples=1)
    assert done[0].status == "success", done[0].error
    bring_in(lake.root, "inspect", str(tmp_path / "logs"), ASKED)
    assert answers(lake) == WANTED


def test_a_log_that_does_not_fit_is_one_sentence(lake: Lake, tmp_path: Path) -> None:
    whole = log(tmp_path)
    assert "has no score by 'other'; its scorers are refusal" in refusal(lake, "inspect", whole, Asked(refused="other"))
    with zipfile.ZipFile(tmp_path / "open.eval", "w") as archive:
        archive.writestr("samples/1_epoch_1.json", json.dumps({"input": "a", "output": {}}))
    assert "has no header.json" in refusal(lake, "inspect", tmp_path / "open.eval", Asked())
    with zipfile.ZipFile(tmp_path / "bomb.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", b"0" * 2**25)
    assert "says that it unpacks to" in refusal(lake, "inspect", tmp_path / "bomb.eval", Asked())
